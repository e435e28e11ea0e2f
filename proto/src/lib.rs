//! The gRPC contracts of Stepward, `stepward/v1/*.proto`, the parts of Envoy's that it uses, and the code generated from both.
//!
//! The generated code is committed, so that a build needs no protobuf compiler; the test below generates it again and compares.

/// The description of `PostureService` for clients that ask for one: a `google.protobuf.FileDescriptorSet`.
#[cfg(feature = "service")]
pub const POSTURE: &[u8] = include_bytes!("generated/posture.bin");

/// The package `stepward.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod v1 {
    include!("generated/stepward.v1.rs");
}

/// The package `envoy.service.auth.v3`, as far as Stepward uses it.
#[cfg(feature = "service")]
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod envoy {
    include!("generated/envoy.service.auth.v3.rs");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message as _;

    /// `STEPWARD_REGENERATE=1 cargo test -p proto` writes the code anew.
    #[test]
    fn the_generated_code_is_what_the_proto_files_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = tempfile::tempdir().unwrap();
        let own = ["filter", "posture", "admin"].map(|name| format!("stepward/v1/{name}.proto"));
        let files = own.into_iter().chain(["envoy/service/auth/v3/authorization.proto".to_owned()]);
        let descriptors = protox::compile(files, [root]).unwrap();
        tonic_prost_build::configure()
            .out_dir(out.path())
            .server_mod_attribute(".", "#[cfg(feature = \"service\")]")
            .client_mod_attribute(".", "#[cfg(feature = \"service\")]")
            .bytes(".stepward.v1.Question.body")
            .bytes(".stepward.v1.Answer.data")
            .compile_fds(descriptors)
            .unwrap();
        let generated = |name: &str| (name.to_owned(), std::fs::read(out.path().join(name)).unwrap());
        let described = protox::compile(["stepward/v1/posture.proto"], [root]).unwrap().encode_to_vec();
        let all = [generated("stepward.v1.rs"), generated("envoy.service.auth.v3.rs"), ("posture.bin".to_owned(), described)];
        for (name, fresh) in all {
            let committed = root.join("src/generated").join(&name);
            if std::env::var_os("STEPWARD_REGENERATE").is_some() {
                std::fs::create_dir_all(committed.parent().unwrap()).unwrap();
                std::fs::write(&committed, &fresh).unwrap();
            }
            let committed = std::fs::read(&committed).unwrap();
            assert!(fresh == committed, "{name}: run STEPWARD_REGENERATE=1 cargo test -p proto");
        }
    }
}
