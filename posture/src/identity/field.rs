//! Fields of requests and certificates that can name a device.

use std::str::FromStr;

use super::word::{UnknownWord, one_of};

/// A field of a request or certificate that can name a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Common name of the subject, `subject.cn`.
    SubjectCommonName,
    /// Serial number in the subject, `subject.serial_number`.
    SubjectSerialNumber,
    /// DNS name among the subject alternative names, `san.dns`.
    SanDns,
    /// Mail address among the subject alternative names, `san.email`.
    SanEmail,
    /// IP address among the subject alternative names, `san.ip`.
    SanIp,
    /// URI among the subject alternative names, `san.uri`.
    SanUri,
    /// Key id of an SSH certificate, `ssh.key_id`.
    SshKeyId,
    /// Principal of an SSH certificate, `ssh.principal`.
    SshPrincipal,
}

impl Field {
    /// All fields.
    pub const ALL: &'static [Self] = &[
        Self::SubjectCommonName,
        Self::SubjectSerialNumber,
        Self::SanDns,
        Self::SanEmail,
        Self::SanIp,
        Self::SanUri,
        Self::SshKeyId,
        Self::SshPrincipal,
    ];

    /// The field's name in the configuration, such as `subject.cn`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SubjectCommonName => "subject.cn",
            Self::SubjectSerialNumber => "subject.serial_number",
            Self::SanDns => "san.dns",
            Self::SanEmail => "san.email",
            Self::SanIp => "san.ip",
            Self::SanUri => "san.uri",
            Self::SshKeyId => "ssh.key_id",
            Self::SshPrincipal => "ssh.principal",
        }
    }
}

impl FromStr for Field {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        one_of(text, Self::ALL, |field| field.as_str())
    }
}
