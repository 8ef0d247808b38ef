//! The verbs of `docker`, on a directory whose pool is real metadata.

#[path = "../../dm-thin-docker/tests/support/mod.rs"]
mod support;

use std::process::{Command, Output};

use serde_json::Value;
use support::{Fixture, hash, image};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dm-thin")).args(arguments).env_remove("DM_THIN_ROOT").output().unwrap()
}

fn text(output: Output) -> (String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn ls_lists_images_containers_and_what_belongs_to_neither() {
    let mut fixture = Fixture::new();
    fixture.contents.thins.insert(9, support::thin(&[(1, 9)]));
    fixture.write_pool("devicemapper/devicemapper");
    let directory = fixture.path().to_str().unwrap();
    let output = run(&["docker", "ls", "-b", "-H", directory]);
    assert!(output.status.success());
    let (rows, findings) = text(output);
    let expected = [
        "image\tdebian:12\tdddddddddddd\t3\t1048576\t196608\tok",
        "container\tweb\teeeeeeeeeeee\t5\t1048576\t196608\tok",
        "device\tthin-9\t-\t9\t-\t65536\tstranded",
    ];
    assert_eq!(rows.lines().collect::<Vec<_>>(), expected);
    assert_eq!(findings, "found: thin device 9 (64 KiB mapped) is in no file of Docker's\n");
    assert_eq!(text(run(&["docker", "ls", "-H", "--all", directory])).0.lines().count(), 6);

    let json: Value = serde_json::from_str(&text(run(&["--json", "docker", "ls", directory])).0).unwrap();
    let store = &json["docker"];
    assert_eq!((&json["version"], &store["transaction"]), (&1.into(), &"clean".into()));
    assert_eq!(store["containers"][0]["name"], "web");
    assert_eq!(store["images"][0]["layers"].as_array().unwrap().len(), 2);
    assert_eq!(store["devices"].as_array().unwrap().len(), 6);
    assert_eq!(store["findings"][0]["details"]["kind"], "stranded");
}

#[test]
fn export_writes_a_raw_image_or_says_why_not() {
    let fixture = Fixture::new();
    let directory = fixture.path().to_str().unwrap();
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("web.img");
    let raw = file.to_str().unwrap();
    let output = run(&["docker", "export", directory, "web", "--raw", raw]);
    assert!(output.status.success(), "{output:?}");
    let expected = image(&fixture.contents.thins[&5].mappings, support::SIZE);
    assert!(std::fs::read(&file).unwrap() == expected);
    for (arguments, words) in [
        (["docker", "export", directory, "web", "--raw", raw], "File exists"),
        (["docker", "export", directory, "none", "--raw", raw], "docker ls"),
        (["docker", "export", directory, "web", "--tar", &format!("{raw}.tar")], "--raw needs neither"),
        (["docker", "export", "/proc", "web", "--raw", raw], "neither a Docker directory"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1));
        let errors = text(output).1;
        assert!(errors.contains(words), "{errors}");
    }
    fixture.write(&format!("devicemapper/metadata/{}", hash('c')), "");
    let output = run(&["docker", "export", directory, "web", "--raw", raw]);
    assert!(text(output).1.contains("metadata unreadable"));
    assert_eq!(run(&["docker", "export", directory, "web"]).status.code(), Some(2));
}
