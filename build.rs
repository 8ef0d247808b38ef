//! Does nothing, unless `DM_THIN_CHECK_HEADERS=1` asks for the comparison of `src/abi` with the
//! kernel's headers: then every constant and structure that they define is found by the
//! preprocessor, asked of the C compiler, and handed to `tests/headers.rs`.
//!
//! Asked for where it cannot be done (no compiler, no headers, another architecture), the build fails.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

const SWITCH: &str = "DM_THIN_CHECK_HEADERS";

/// Which header, and which of its macros: all, or those that begin so.
const HEADERS: &[(&str, &[&str])] = &[
    ("linux/dm-ioctl.h", &[""]),
    ("linux/loop.h", &[""]),
    ("linux/fs.h", &["BLK"]),
    ("linux/mount.h", &["MS_"]),
    ("sys/mount.h", &["MNT_", "UMOUNT_"]),
];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(dm_thin_headers)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={SWITCH}");
    if env::var(SWITCH).is_ok_and(|value| value == "1") {
        println!("cargo::rerun-if-env-changed=CC");
        println!("cargo::rustc-cfg=dm_thin_headers");
        let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
        let tables: String = HEADERS.iter().map(|(header, prefixes)| table(&out, header, prefixes)).collect();
        let text = format!("const HEADERS: &[Header] = &[\n{tables}];\n");
        fs::write(Path::new(&out).join("headers.rs"), text).expect("write headers.rs");
    }
}

/// The Rust text of one header's `Header`.
fn table(out: &str, header: &str, prefixes: &[&str]) -> String {
    let host = env::var("HOST").expect("cargo sets HOST");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    assert!(host.starts_with(&arch), "{SWITCH}: the probe for {arch} cannot run on {host}");

    let probe = Path::new(out).join("probe.c");
    fs::write(&probe, format!("#include <{header}>\n")).expect("write probe.c");
    let text = run(compiler().args(["-E", "-dD"]).arg(&probe), "the preprocessor");
    let found = Found::read(&text, header);
    let macros = found.macros.iter().filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    let wanted =
        |name: &&String| prefixes.contains(&"") || prefixes.iter().any(|prefix| name.starts_with(prefix));

    let mut body = String::new();
    let mut seen = Vec::new();
    for name in macros.chain(found.members.iter().filter(wanted)) {
        if !seen.contains(&name) {
            writeln!(body, "SHOW({name});").unwrap();
            seen.push(name);
        }
    }
    let structs = if prefixes.contains(&"") { &found.structs[..] } else { &[] };
    writeln!(body, "puts(\"], structs: &[\");").unwrap();
    for (name, fields) in structs {
        writeln!(body, "printf(\"(\\\"{name}\\\", %zu, &[\\n\", sizeof(struct {name}));").unwrap();
        for field in fields {
            let offset = format!("offsetof(struct {name}, {field})");
            writeln!(body, "printf(\"(\\\"{field}\\\", %zu),\\n\", {offset});").unwrap();
        }
        writeln!(body, "puts(\"]),\");").unwrap();
    }
    let program = format!(
        "#include <{header}>\n#include <linux/blktrace_api.h>\n#include <linux/ioctl.h>\n#include <stddef.h>\n#include <stdio.h>\n\
         static void text(const char *name, const char *text) {{ printf(\"(\\\"%s\\\", Value::Text(\\\"%s\\\")),\\n\", name, text); }}\n\
         static void number(const char *name, long long number) {{ printf(\"(\\\"%s\\\", Value::Number(%lld)),\\n\", name, number); }}\n\
         #define SHOW(x) _Generic((x), char *: text, default: number)(#x, (x))\n\
         int main(void) {{\nputs(\"Header {{ name: \\\"{header}\\\", constants: &[\");\n{body}puts(\"] }},\");\nreturn 0;\n}}\n",
    );
    fs::write(&probe, program).expect("write probe.c");
    let exe = Path::new(out).join("probe");
    run(compiler().arg(&probe).arg("-o").arg(&exe), "the C compiler");
    run(&mut Command::new(&exe), "the probe")
}

fn compiler() -> Command {
    Command::new(env::var("CC").unwrap_or_else(|_| "cc".into()))
}

fn run(command: &mut Command, what: &str) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{SWITCH} is set, but {what} does not run: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{SWITCH} is set, but {what} failed:\n{errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What a header itself defines, not what it includes.
#[derive(Default)]
struct Found {
    macros: Vec<String>,
    members: Vec<String>,
    structs: Vec<(String, Vec<String>)>,
}

impl Found {
    /// Out of preprocessed text with `#define`s and line markers, which tell the files apart.
    fn read(text: &str, header: &str) -> Self {
        let mut found = Self::default();
        let (mut inside, mut code) = (false, String::new());
        for line in text.lines() {
            if let Some(marker) = line.strip_prefix("# ") {
                inside = marker.split('"').nth(1).is_some_and(|file| file.ends_with(&format!("/{header}")));
            } else if let (true, Some(define)) = (inside, line.strip_prefix("#define ")) {
                // Macros with arguments or without a value are no constants.
                if let Some((name, value)) = define.split_once(' ')
                    && !name.contains('(')
                    && !value.trim().is_empty()
                    && name != value.trim()
                {
                    found.macros.push(name.to_owned());
                }
            } else if inside && !line.starts_with('#') {
                code.push_str(line);
                code.push(' ');
            }
        }
        for (head, body) in blocks(&code) {
            match head.split_whitespace().collect::<Vec<_>>()[..] {
                [.., "struct", name] => found.structs.push((name.into(), split(body, ';', declared))),
                [.., "enum"] | [.., "enum", _] => found.members.extend(split(body, ',', first_word)),
                _ => {}
            }
        }
        assert!(!found.macros.is_empty() || !found.members.is_empty(), "<{header}> defines nothing");
        found
    }
}

/// `head { body }`, of blocks that are not nested.
fn blocks(code: &str) -> impl Iterator<Item = (&str, &str)> {
    code.split('}').filter_map(|block| block.rsplit_once('{'))
}

fn split(body: &str, separator: char, name: fn(&str) -> &str) -> Vec<String> {
    let parts = body.split(separator).map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| name(part).to_owned()).collect()
}

/// The name in `unsigned char key[32]`.
fn declared(declaration: &str) -> &str {
    let declarator = declaration.split('[').next().unwrap_or_default();
    declarator.split_whitespace().last().unwrap_or_default()
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| c.is_whitespace() || c == '=').next().unwrap_or_default()
}
