//! A list of devices in a file, as a provider.

use std::path::Path;

use async_trait::async_trait;
use inventory::Question;
use inventory::file::{FileProvider, Reloaded};
use posture::identity::{DeviceId, IdentifierKind};
use posture::secret::Secret;
use posture::shown::counted;

use super::configured::ProviderSettings;
use super::source::{Failure, Provider};
use crate::cache::{self, Evidence, Looked};

#[async_trait]
impl Provider for FileProvider {
    fn has(&self, settings: &ProviderSettings, _secrets: &[Secret]) -> bool {
        matches!(settings, ProviderSettings::File(settings) if self.settings() == settings)
    }

    async fn lookup(&self, question: &Question, _terms: cache::Terms) -> Looked {
        // The number is read before the lookup, so that a reload in between counts as a change.
        let reading = self.readings();
        Looked { evidence: Evidence::File(reading), ..Looked::live(Self::lookup(self, &question.device)) }
    }

    fn stands(&self, device: &DeviceId, looked: &Looked) -> bool {
        match looked.evidence {
            Evidence::File(reading) => self.readings() == reading || Self::lookup(self, device) == looked.answer,
            Evidence::Overtaken => false,
            _ => true,
        }
    }

    fn is_asked_by(&self, kind: IdentifierKind) -> bool {
        self.settings().identifier == kind
    }

    fn file(&self) -> Option<&Path> {
        Some(&self.settings().path)
    }

    fn changed(&self) -> bool {
        Self::changed(self)
    }

    fn reload(&self, _name: &str, accept_shrink: bool) -> Result<String, Failure> {
        match Self::reload(self, accept_shrink) {
            Ok(Reloaded::Unchanged) => Ok("unchanged".to_owned()),
            Ok(Reloaded::Applied { had, has }) => Ok(format!("{}, before {had}", counted(has, "device"))),
            Err(error) => Err(Failure::File(error)),
        }
    }

    fn pending_shrink(&self, name: &str) -> Option<String> {
        Some(format!("{}; {}", Self::pending_shrink(self)?, cache::accept(name)))
    }

    fn len(&self) -> usize {
        Self::len(self)
    }
}
