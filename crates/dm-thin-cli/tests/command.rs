//! Every verb of the command on a real kernel, in the guest: this program runs itself as `dm-thin`.

#[path = "../../dm-thin-docker/tests/support/mod.rs"]
mod docker;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::rc::Rc;

use dm_thin::tree::{Options, SnapshotTree};
use nix::pty::{Winsize, openpty};
use serde_json::{Value, json};

const AS_COMMAND: &str = "DM_THIN_TEST_IS_COMMAND";

fn main() -> ExitCode {
    if std::env::var_os(AS_COMMAND).is_some() {
        return dm_thin_cli::main();
    }
    let directory = tempfile::TempDir::new_in("/var/lib").unwrap();
    let schema: Value = serde_json::from_str(include_str!("../schema.json")).unwrap();
    let schema = Rc::new(jsonschema::validator_for(&schema).unwrap());
    let test = Test { root: directory.path().join("root").to_str().unwrap().to_owned(), schema };
    test.docker(directory.path());
    test.everything(directory.path());
    test.failures(directory.path());
    println!("every verb did what it says");
    ExitCode::SUCCESS
}

struct Test {
    root: String,
    schema: Rc<jsonschema::Validator>,
}

impl Test {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg0("dm-thin")
            .args(arguments)
            .env(AS_COMMAND, "1")
            .env("DM_THIN_ROOT", &self.root)
            .stdin(Stdio::null());
        command
    }

    /// The same with another tree.
    fn other(&self, root: &Path) -> Self {
        Self { root: root.to_str().unwrap().to_owned(), schema: self.schema.clone() }
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
        self.parse(&text)[what].take()
    }

    /// One line of JSON, as the schema describes it.
    fn parse(&self, text: &str) -> Value {
        let value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        self.schema
            .validate(&value)
            .unwrap_or_else(|error| panic!("{text}: {}: {error}", error.instance_path));
        value
    }

    /// What a terminal of 80 and of 200 columns shows is what tests/terminal.txt has: without ages and uuids, which change.
    fn terminal(&self) {
        let mut shown = String::new();
        for columns in [80, 200] {
            for verb in [
                &["ls"][..],
                &["ls", "--long", "--exclusive"],
                &["tree"],
                &["df"],
                &["info", "golden"],
                &["check"],
                &["add", "--help"],
            ] {
                let size = Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                let terminal = openpty(&size, None).unwrap();
                let mut command = self.command(verb);
                command.env("TERM", "xterm-256color").stderr(terminal.slave.try_clone().unwrap());
                let mut child = command.stdout(terminal.slave).spawn().unwrap();
                drop(command); // it has the slave's descriptors
                let mut text = Vec::new();
                // EIO once nobody has the terminal any more.
                let end = File::from(terminal.master).read_to_end(&mut text).unwrap_err();
                assert_eq!(end.raw_os_error(), Some(nix::libc::EIO));
                assert!(child.wait().unwrap().success());
                let text = String::from_utf8(text).unwrap();
                shown.push_str(&format!("[{columns}] $ dm-thin {}\n", verb.join(" ")));
                for line in text.lines() {
                    let line = without_chance(line);
                    // How wide its columns are, the file system below decides.
                    let words: Vec<_> = line.split_whitespace().collect();
                    let line = if verb == ["df"] { words.join(" ") } else { line };
                    shown.push_str(&format!("{line}\n"));
                }
            }
        }
        let expected = include_str!("terminal.txt");
        assert!(shown == expected, "tests/terminal.txt is not what is shown now:\n{shown}");
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

    /// Of a user who is nobody.
    fn not_root(&self, directory: &Path) {
        let program = directory.join("dm-thin");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        for arguments in [&["ls"][..], &["add", "x"], &["trees"], &["which", "254:0"]] {
            let mut command = self.command(arguments);
            let mut nobody = Command::new(&program);
            nobody
                .args(arguments)
                .envs(command.stdin(Stdio::null()).get_envs().filter_map(|(key, value)| Some((key, value?))));
            let output = nobody.uid(65534).gid(65534).output().unwrap();
            let errors = String::from_utf8(output.stderr).unwrap();
            println!("nobody$ dm-thin {}\n{errors}", arguments.join(" "));
            assert_eq!(output.status.code(), Some(1), "{errors}");
            assert!(errors.contains("run it as root"), "{errors}");
        }
    }

    /// A tree of what Docker has left, and a tar archive, for which the kernel mounts a device.
    fn docker(&self, directory: &Path) {
        let content = directory.join("content");
        fs::create_dir_all(content.join("rootfs/etc")).unwrap();
        fs::write(content.join("rootfs/etc/hostname"), "web\n").unwrap();
        let (fixture, _) = docker::with_filesystem(&content, "mkfs.ext4");
        let docker = fixture.path().to_str().unwrap();
        let archive = directory.join("web.tar");
        let exported =
            self.json("exported", &["docker", "export", docker, "web", "--tar", archive.to_str().unwrap()]);
        assert_eq!((&exported["entries"], &exported["consistent"]), (&2.into(), &true.into()));
        let root = directory.join("adopted");
        let tree = self.other(&root);
        tree.ok(&["init", "--data-size", "512M", "--metadata-size", "8M", "--base-size", "64M"]);
        let adopted = tree.json("adopted", &["docker", "adopt", docker]);
        assert_eq!(adopted.as_array().unwrap().len(), 5);
        let target = directory.join("container");
        tree.ok(&["mount", &docker::hash('c'), target.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(target.join("rootfs/etc/hostname")).unwrap(), "web\n");
        tree.ok(&["umount", &docker::hash('c')]);
        tree.ok(&["check"]);
        tree.ok(&["close"]);
        self.docker_in_place(directory, &fixture);
    }

    /// The same in Docker's own pool, given back, and adopted for good.
    fn docker_in_place(&self, directory: &Path, fixture: &docker::Fixture) {
        let (docker, target) = (fixture.path().to_str().unwrap(), directory.join("container"));
        let root = directory.join("in place");
        let tree = self.other(&root);
        let data = fixture.join("devicemapper/devicemapper/data");
        let before = (self.json("docker", &["docker", "ls", docker]), fs::read(&data).unwrap());
        let adopt = ["docker", "adopt", docker, "--in-place"];
        let adopted = |state| {
            let adopted = tree.json("adopted", &adopt);
            let is_it = |it: &Value| it["adopted"] == state;
            assert!(adopted.as_array().unwrap().iter().all(is_it) && adopted[4].is_object(), "{adopted}");
        };
        adopted("in_place");
        adopted("present");
        let list = tree.json("snapshots", &["ls"]);
        let mut ids: Vec<_> = list.as_array().unwrap().iter().map(|it| it["thin_id"].as_u64()).collect();
        ids.sort();
        assert_eq!(ids, [1, 2, 3, 4, 5].map(Some));
        tree.ok(&["activate", "docker-base"]);
        tree.fails(3, &["docker-", "busy"], &["docker", "deactivate", docker]);
        tree.ok(&["close"]);
        self.ok(&["docker", "deactivate", docker]);
        assert_eq!(self.json("deactivated", &["docker", "deactivate", docker])["was_active"], false);
        fs::remove_dir_all(&root).unwrap();
        let after = (self.json("docker", &["docker", "ls", docker]), fs::read(&data).unwrap());
        assert!(before == after, "{}\n{}", before.0, after.0);

        // One of its files is in use.
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(&data).output().unwrap();
        let attached = String::from_utf8(attached.stdout).unwrap();
        tree.fails(1, &["in use by", attached.trim()], &adopt);
        assert!(Command::new("losetup").arg("--detach").arg(attached.trim()).status().unwrap().success());

        adopted("in_place");
        let container = docker::hash('c');
        tree.ok(&["mount", &container, target.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(target.join("rootfs/etc/hostname")).unwrap(), "web\n");
        fs::write(target.join("rootfs/etc/hostname"), "adopted\n").unwrap();
        tree.ok(&["umount", &container]);
        tree.ok(&["add", "next", "--of", &container]);
        tree.ok(&["check"]);
        tree.ok(&["close"]);
        self.ok(&["docker", "deactivate", docker]);
        // As after a restart.
        tree.fails(
            1,
            &["has no pool docker-", "dm-thin docker activate"],
            &["add", "late", "--of", &container],
        );
        self.ok(&["docker", "activate", docker]);
        tree.ok(&["mount", "next", target.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(target.join("rootfs/etc/hostname")).unwrap(), "adopted\n");
        tree.ok(&["umount", "next"]);
        tree.ok(&["close"]);
        self.ok(&["docker", "deactivate", docker]);
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
        let alone = self.json("snapshots", &["ls", "--exclusive"]);
        assert!(alone[1]["exclusive"].as_u64().unwrap() <= list[1]["mapped"].as_u64().unwrap());
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
        assert_eq!(self.json("snapshot", &["info", "vm"])["open"], 1);
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

        self.terminal();

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
        let other = self.other(&directory.join("other"));
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
        assert_eq!(self.json("would_remove", &["rm", "-n", "machine"]), json!(["machine"]));
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
        let checked = self.run(&["check"]);
        assert_eq!(checked.status.code(), Some(0));
        assert_eq!(String::from_utf8(checked.stdout).unwrap(), "nothing found\n");
        let said = String::from_utf8(checked.stderr).unwrap();
        assert!(said.contains("only the pool and the devices are compared"), "{said}");
        tree.close().unwrap();
        drop(tree);
        self.not_root(directory);

        // A full pool, and what its events say meanwhile.
        fs::write("/sys/module/dm_thin_pool/parameters/no_space_timeout", "3").unwrap();
        let small = self.other(&directory.join("small"));
        let sizes = ["--data-size", "64M", "--metadata-size", "8M", "--base-size", "1G"];
        small.ok(&[&["init", "--filesystem", "none"], &sizes[..]].concat());
        small.ok(&["add", "large"]);
        let device = small.ok(&["activate", "large"]);
        let mut events = small.command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(events.stdout.take().unwrap()).lines().map(Result::unwrap);
        let file = File::options().write(true).open(device.trim()).unwrap();
        let block = vec![1; 1 << 20];
        let full = (0..128).any(|_| (&file).write_all(&block).and_then(|()| file.sync_data()).is_err());
        assert!(full, "the pool never became full");
        drop(file);
        let low = small.parse(&told.next().unwrap());
        assert!(low["event"]["low_water"]["free"].is_u64(), "{low}");
        assert!(told.by_ref().any(|line| small.parse(&line)["event"] == "out_of_data_space"));
        small.fails(4, &["dm-thin df"], &["add", "one-more"]);
        small.ok(&["rm", "--yes", "large"]);
        small.ok(&["close"]);
        assert!(told.any(|line| small.parse(&line)["event"] == "removed"));
        assert!(events.wait().unwrap().success());
    }
}

/// A line without what chance decides: uuids, ages (in columns of three), and how full the file system below is.
fn without_chance(line: &str) -> String {
    if let Some(name @ ("age" | "below")) = line.split(' ').next() {
        return name.to_owned();
    }
    let mut masked = line.to_owned();
    for word in line.split(' ').filter(|word| !word.is_empty()) {
        let end = word.as_ptr() as usize - line.as_ptr() as usize + word.len();
        let is_uuid = word.len() == 36 && word.bytes().filter(|&byte| byte == b'-').count() == 4;
        let is_age = word.strip_suffix(['s', 'm']).is_some_and(|count| count.parse::<u8>().is_ok());
        let width = if is_uuid { 36 } else { 3 };
        if is_uuid || is_age {
            masked.replace_range(end - width..end, &"#".repeat(width));
        }
    }
    masked
}
