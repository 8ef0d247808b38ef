//! The generated code is that of the protocol files; `DM_THIN_UPDATE_GENERATED=1` writes it anew.

use std::fs;
use std::path::Path;

#[test]
fn the_generated_code_is_of_the_protocol_files() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(["snapshots.proto"], [here.join("proto")]).unwrap();
    let made = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .btree_map(".")
        .out_dir(made.path())
        .compile_fds(files)
        .unwrap();
    for name in ["containerd.services.snapshots.v1.rs", "containerd.types.rs"] {
        let (made, kept) = (made.path().join(name), here.join("src/generated").join(name));
        let text = fs::read_to_string(made).unwrap();
        if std::env::var_os("DM_THIN_UPDATE_GENERATED").is_some() {
            fs::create_dir_all(kept.parent().unwrap()).unwrap();
            fs::write(&kept, &text).unwrap();
        }
        let same = fs::read_to_string(&kept).is_ok_and(|kept| kept == text);
        assert!(same, "{} is of other files: DM_THIN_UPDATE_GENERATED=1", kept.display());
    }
}
