//! House rules that a test can check. An exception is a line in one of the lists below; the lists only shrink.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what is wrong")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A file is split before it gets this long.
const FILE_LINES_MAX: usize = 600;
/// A function is split before it gets longer than this, signature and braces included.
const FUNCTION_LINES_MAX: usize = 70;
/// What nobody reads or nobody wrote.
const SKIPPED: &[&str] = &["target", "data", ".git", ".venv", "corpus", "__pycache__"];
/// The only place for the keyword.
const UNSAFE_ALLOWED: &[&str] = &["gateway/src/ring.rs", "gateway/src/ring/"];

struct File {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tools is a folder of the workspace").to_owned()
}

/// Every text file of the tree with its path from the root.
fn files() -> Vec<File> {
    let (root, mut found, mut todo) = (root(), Vec::new(), vec![root()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                found.push(File { path, text });
            }
        }
    }
    assert!(found.len() > 20, "the walk found only {} files", found.len());
    found
}

fn rust_files() -> Vec<File> {
    files().into_iter().filter(|file| file.path.ends_with(".rs")).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn assert_none(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn no_file_is_too_long() {
    let long = rust_files()
        .iter()
        .map(|file| (file.text.lines().count(), &file.path))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    assert_none("files past the limit; split by concern", long);
}

/// Relies on rustfmt: a function ends at the first closing brace with the indent of its first line.
#[test]
fn no_function_is_too_long() {
    let mut long = Vec::new();
    for file in rust_files() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            if !is_function(code) || line.ends_with(';') || line.ends_with('}') {
                continue;
            }
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let length = lines[at..].iter().position(|line| *line == end).map_or(0, |end| end + 1);
            if length > FUNCTION_LINES_MAX {
                long.push(format!("{}:{}: {length} lines", file.path, at + 1));
            }
        }
    }
    assert_none("functions past the limit; branches in the parent, loops in the leaf", long);
}

fn is_function(code: &str) -> bool {
    let mut words = code.split(' ');
    let modifiers = ["const", "async", "unsafe", "extern"];
    let first =
        words.find(|word| !word.starts_with("pub") && !word.starts_with('"') && !modifiers.contains(word));
    first == Some("fn")
}

#[test]
fn unsafe_stays_in_the_ring() {
    let keyword = concat!("un", "safe");
    let mut found = Vec::new();
    for file in rust_files() {
        if UNSAFE_ALLOWED.iter().any(|allowed| file.path.starts_with(allowed)) {
            continue;
        }
        for (at, line) in file.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let used = code.match_indices(keyword).any(|(start, _)| {
                let before = code[..start]
                    .chars()
                    .next_back()
                    .is_none_or(|c| !c.is_alphanumeric() && !"_`\"".contains(c));
                before && code[start + keyword.len()..].starts_with([' ', '{'])
            });
            if used {
                found.push(format!("{}:{}: {}", file.path, at + 1, line.trim()));
            }
        }
    }
    assert_none("not in the ring", found);
}

#[test]
fn every_crate_but_the_gateway_forbids_it() {
    for folder in ["codec", "control", "control/rpc", "tools", "benches"] {
        assert!(
            read(&format!("{folder}/src/lib.rs")).contains(concat!("#![forbid(un", "safe_code)]")),
            "{folder}"
        );
    }
    assert!(read("gateway/src/lib.rs").contains(concat!("#![deny(un", "safe_code)]")));
}

#[test]
fn dependencies_point_one_way() {
    let forbidden: &[(&str, &[&str])] = &[
        ("codec", &["gimbal-rpc", "gimbal-control", "gimbal-gateway", "gimbal-benches", "tokio", "libc"]),
        ("control/rpc", &["gimbal-control", "gimbal-gateway", "gimbal-benches"]),
        ("control", &["gimbal-gateway", "gimbal-benches", "glommio", "io-uring"]),
        ("gateway", &["gimbal-control", "gimbal-benches", "rocksdb"]),
        ("tools", &["gimbal-benches", "rocksdb"]),
    ];
    let mut found = Vec::new();
    for (folder, names) in forbidden {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        for line in manifest.lines() {
            if let Some(name) = names.iter().find(|name| line.starts_with(&format!("{name}."))) {
                found.push(format!("{folder} uses {name}"));
            }
        }
    }
    assert_none("against the flow codec <- contract <- control, gateway <- tools, benches", found);
}

#[test]
fn each_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let table =
        manifest.split("[workspace.dependencies]").nth(1).expect("the table").split("\n[").next().unwrap();
    let bare = table
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#') && !line.starts_with("gimbal-"))
        .filter(|line| line.split("# ").nth(1).is_none_or(|reason| reason.trim().len() < 5))
        .map(str::to_owned)
        .collect();
    assert_none("no reason behind the version", bare);
}

#[test]
fn versions_stand_in_the_workspace_alone() {
    let mut found = Vec::new();
    for file in
        files().iter().filter(|file| file.path.ends_with("/Cargo.toml") && !file.path.contains("fuzz/"))
    {
        let tables = file
            .text
            .split("\n[")
            .filter(|table| table.starts_with("dependencies]") || table.contains("-dependencies]"));
        for line in tables.flat_map(|table| table.lines().skip(1)) {
            if line.contains('=') && !line.contains("workspace = true") {
                found.push(format!("{}: {line}", file.path));
            }
        }
    }
    assert_none("state the version in the root manifest", found);
}

/// Where names are not put together from tables; of those, the end-to-end test looks at the rendered page.
#[test]
fn metric_names_are_unique() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in rust_files().iter().filter(|file| file.path.contains("/src/")) {
        let packed = file.text.replace(['\n', ' '], "");
        for call in packed.split(".register(\"").skip(1) {
            let name = call.split('"').next().unwrap_or("").to_owned();
            places.entry(name).or_default().push(file.path.clone());
        }
    }
    let double =
        places.iter().filter(|(_, at)| at.len() > 1).map(|(name, at)| format!("{name}: {}", at.join(", ")));
    assert_none("registered more than once", double.collect());
}

/// Each key of the default file stands in the page with the same default, and nothing else does.
#[test]
fn the_page_about_settings_has_each_of_them_with_its_default() {
    let row = |line: &str| {
        let (key, default) = line.strip_prefix("| `")?.split_once("` | ")?;
        Some((key.to_owned(), default.split(" |").next()?.trim_matches('`').to_owned()))
    };
    let page = read("docs/configuration.md");
    let tables = page.split_once("## `[gateway]`").expect("the first table").1;
    let mut documented: Vec<(String, String)> = tables.lines().filter_map(row).collect();
    let mut defaults: Vec<(String, String)> = Vec::new();
    for line in read("tools/src/config/default.toml").lines() {
        match line.strip_prefix("#= ").unwrap_or(line).split_once(" = ") {
            Some((key, _)) if line.starts_with("#= ") => defaults.push((key.to_owned(), "none".to_owned())),
            Some((key, value)) if !line.starts_with('#') => defaults.push((key.to_owned(), value.to_owned())),
            _ => {}
        }
    }
    documented.sort();
    defaults.sort();
    assert_eq!(documented, defaults);
}

#[test]
fn nothing_names_a_machine_or_a_registry() {
    let paths =
        [concat!("/wo", "rk/"), concat!("/fa", "rm/"), concat!("/ho", "me/"), concat!("/tm", "p/plan")];
    let hosts = [
        concat!("static.crates", ".io"),
        concat!("index.crates", ".io"),
        concat!("py", "pi.org"),
        concat!("python", "hosted.org"),
        concat!("deb.deb", "ian.org"),
    ];
    let mut found = Vec::new();
    for file in files().iter().filter(|file| !file.path.ends_with("Cargo.lock")) {
        for (at, line) in file.text.lines().enumerate() {
            if paths.iter().chain(&hosts).any(|name| line.contains(name)) {
                found.push(format!("{}:{}: {}", file.path, at + 1, line.trim()));
            }
        }
    }
    assert_none("holds only on one machine, or fixes a registry", found);
}
