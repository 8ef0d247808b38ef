//! Every verb of the command on a real kernel, in the guest: this program runs itself as `dm-thin`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};

use dm_thin::tree::{Options, SnapshotTree};
use serde_json::Value;

const AS_COMMAND: &str = "DM_THIN_TEST_IS_COMMAND";

fn main() -> ExitCode {
    if std::env::var_os(AS_COMMAND).is_some() {
        return dm_thin_cli::main();
    }
    let directory = tempfile::TempDir::new_in("/var/lib").unwrap();
    let test = Test { root: directory.path().join("root").to_str().unwrap().to_owned() };
    test.everything(directory.path());
    test.failures(directory.path());
    println!("every verb did what it says");
    ExitCode::SUCCESS
}

struct Test {
    root: String,
}

impl Test {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments).env(AS_COMMAND, "1").env("DM_THIN_ROOT", &self.root).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command that succeeds prints.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (text, errors) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {}: {text}{errors}", output.status);
        println!("$ dm-thin {}\n{text}", arguments.join(" "));
        text
    }

    fn json(&self, what: &str, arguments: &[&str]) -> Value {
        let text = self.ok(&[&["--json"], arguments].concat());
        let mut value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(value["version"], 1);
        value[what].take()
    }

    /// A command that fails with that status, and says so in these words.
    fn fails(&self, code: i32, words: &[&str], arguments: &[&str]) {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        println!("$ dm-thin {}\n{errors}", arguments.join(" "));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        for word in words {
            assert!(errors.contains(word), "{arguments:?}: {errors}");
        }
    }

    fn everything(&self, directory: &Path) {
        let target = directory.join("mounted");
        let target = target.to_str().unwrap();
        self.ok(&["init", "--data-size", "512M", "--metadata-size", "8M", "--base-size", "64M"]);
        self.ok(&["add", "image", "-l", "made-by=test"]);
        self.ok(&["mount", "image", target]);
        fs::write(format!("{target}/file"), "text").unwrap();
        self.ok(&["umount", "image"]);
        let uuid = self.ok(&["commit", "image", "golden", "-l", "kind=image"]);
        assert_eq!(uuid.trim().len(), 36);
        let device = self.ok(&["add", "vm", "--of", "golden", "--activate"]);
        let device = device.trim();
        assert!(Path::new(device).exists(), "{device}");

        // Looking.
        let list = self.json("snapshots", &["ls"]);
        assert_eq!((list[0]["id"].as_str(), list[1]["id"].as_str()), (Some("golden"), Some("vm")));
        assert_eq!(
            (list[1]["parent"]["id"].as_str(), list[1]["state"].as_str()),
            (Some("golden"), Some("active"))
        );
        assert_eq!(list[1]["size"], 64 << 20);
        assert!(list[1]["mapped"].as_u64().unwrap() > 0);
        assert_eq!(list[0]["labels"]["kind"], "image");
        assert_eq!(self.json("snapshots", &["ls", "--label", "kind=image"]).as_array().unwrap().len(), 1);
        let table = self.ok(&["ls", "-l", "--sort", "age"]);
        assert!(table.starts_with("ID") && table.contains("64 MiB"), "{table}");
        assert_eq!(self.ok(&["-H", "-b", "ls"]).lines().next().unwrap().split('\t').nth(2), Some("67108864"));
        assert!(self.ok(&["tree"]).contains("vm"));
        assert_eq!(self.json("tree", &["tree"])[1]["depth"], 1);
        assert_eq!(self.json("space", &["df"])["data"]["total"], 512 << 20);
        assert!(self.ok(&["df"]).contains("metadata"));
        assert_eq!(self.json("snapshot", &["info", "vm"])["device"], device);
        assert!(self.ok(&["info", "golden"]).contains("children     1"));
        assert_eq!(self.json("device", &["which", device])["snapshot"], "vm");
        let trees = self.json("trees", &["trees"]);
        assert_eq!((trees[0]["root"].as_str(), trees[0]["snapshots"].as_u64()), (Some(&*self.root), Some(2)));
        self.ok(&["trees"]);
        let held = File::open(device).unwrap();
        let holders = self.json("holders", &["holders", "vm"]);
        assert!(holders[0].as_str().unwrap().contains(&std::process::id().to_string()), "{holders}");
        self.fails(3, &["busy", "dm-thin holders vm"], &["deactivate", "vm"]);
        drop(held);
        let state = self.json("state", &["dump"]);
        assert_eq!(state["snapshots"].as_array().unwrap().len(), 2);
        assert!(self.json("machine", &["doctor"]).as_array().unwrap().len() > 5);
        assert!(self.ok(&["check"]).contains("nothing found"));

        // By its uuid, without its directory.
        let uuid = trees[0]["uuid"].as_str().unwrap();
        let mut command = self.command(&["--tree", uuid, "-H", "ls"]);
        let output = command.env_remove("DM_THIN_ROOT").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("golden"), "{output:?}");

        // Changing.
        self.ok(&["label", "vm", "owner=1000", "old=x"]);
        assert_eq!(self.json("labels", &["label", "vm", "old="])["owner"], "1000");
        self.ok(&["mv", "vm", "machine"]);
        self.ok(&["resize", "machine", "128M"]);
        self.ok(&["mount", "machine", target, "--options", "discard"]);
        assert_eq!(fs::read_to_string(format!("{target}/file")).unwrap(), "text");
        fs::write(format!("{target}/other"), "more").unwrap();
        self.fails(3, &["mounted", "dm-thin umount machine"], &["seal", "machine"]);
        self.ok(&["trim", "machine"]);
        self.ok(&["unmount", "machine"]);
        self.ok(&["deactivate", "machine"]);
        let path = self.ok(&["activate", "machine", "--read-only"]);
        assert!(path.starts_with("/dev/mapper/"));
        self.ok(&["deactivate", "machine"]);
        self.ok(&["seal", "machine"]);
        self.ok(&["unseal", "machine"]);
        self.ok(&["seal", "machine"]);
        self.ok(&["ready", "1", "--of", "golden"]);
        self.ok(&["ready", "0", "--of", "golden"]);
        self.ok(&["grow-pool", "768M"]);
        assert_eq!(self.json("space", &["df"])["data"]["total"], 768 << 20);

        // Streams and images.
        let changed = self.json("changed", &["diff", "golden", "machine"]);
        assert!(!changed.as_array().unwrap().is_empty());
        let size =
            self.json("stream", &["send", "-n", "machine", "--since", "golden"])["size"].as_u64().unwrap();
        let stream = self.run(&["send", "machine", "--since", "golden"]);
        assert_eq!(stream.stdout.len() as u64, size, "{}", String::from_utf8_lossy(&stream.stderr));
        let whole = self.run(&["send", "golden", "--recursive"]).stdout;
        let other = Test { root: directory.join("other").to_str().unwrap().to_owned() };
        other.ok(&["init", "--data-size", "512M", "--metadata-size", "8M", "--base-size", "64M"]);
        let mut receiver = other.command(&["receive"]).stdin(Stdio::piped()).spawn().unwrap();
        receiver.stdin.take().unwrap().write_all(&whole).unwrap();
        assert!(receiver.wait().unwrap().success());
        assert_eq!(other.json("snapshots", &["ls"]).as_array().unwrap().len(), 2);
        let image = directory.join("image.raw");
        let image = image.to_str().unwrap();
        self.ok(&["export", "golden", image]);
        assert_eq!(fs::metadata(image).unwrap().len(), 64 << 20);
        other.ok(&["import", "copy", image]);
        other.ok(&["mount", "copy", target, "--read-only"]);
        assert_eq!(fs::read_to_string(format!("{target}/file")).unwrap(), "text");
        other.ok(&["umount", "copy"]);
        other.ok(&["close"]);

        // What destroys asks first.
        assert!(self.ok(&["rm", "-n", "machine"]).contains("would remove machine"));
        self.fails(2, &["--yes"], &["rm", "machine"]);
        self.fails(1, &["children"], &["rm", "--yes", "--no-children", "golden"]);
        self.ok(&["rm", "--yes", "machine"]);
        self.ok(&["repair", "--yes"]);
        self.ok(&["close"]);
        assert!(self.ok(&["repair-metadata", "-n"]).contains("nothing is lost"));
        self.ok(&["repair-metadata", "--yes"]);
        self.ok(&["repair-metadata", "--restore", "--yes"]);
        assert!(self.ok(&["check"]).contains("nothing found"));
        self.ok(&["close"]);
    }

    fn failures(&self, directory: &Path) {
        self.fails(1, &["no snapshot \"none\"", "dm-thin ls"], &["info", "none"]);
        self.fails(1, &["no snapshot \"none\""], &["activate", "none"]);
        self.fails(2, &["Usage"], &["no-such-verb"]);
        self.fails(2, &["KEY=VALUE"], &["label", "golden", "text"]);
        self.fails(2, &["size"], &["resize", "golden", "many"]);
        let nowhere = directory.join("nowhere");
        let nowhere = nowhere.to_str().unwrap();
        self.fails(1, &["there is no tree in", "dm-thin init"], &["--root", nowhere, "ls"]);
        self.fails(1, &["already"], &["init"]);
        // While another process has it, looking works, and changing says who has it.
        let tree = SnapshotTree::open(&self.root, Options::new()).unwrap();
        self.ok(&["ls"]);
        assert_eq!(self.json("holders", &["holders", "golden"]).as_array().unwrap().len(), 0);
        self.fails(3, &[&std::process::id().to_string()], &["add", "late"]);
        tree.close().unwrap();
        drop(tree);
        // A full pool.
        self.ok(&["add", "large", "--size", "2G"]);
        let device = self.ok(&["activate", "large"]);
        let file = File::options().write(true).open(device.trim()).unwrap();
        let block = vec![1; 1 << 20];
        let full = (0..2048).any(|_| (&file).write_all(&block).and_then(|()| file.sync_data()).is_err());
        assert!(full, "the pool never became full");
        drop(file);
        self.fails(4, &["dm-thin df"], &["add", "one-more"]);
        self.ok(&["rm", "--yes", "large"]);
        self.ok(&["close"]);
    }
}
