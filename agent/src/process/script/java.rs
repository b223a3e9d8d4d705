//! The main class or archive of a Java command line.

use super::file_name;

/// Reads the arguments after `java`.
pub(super) fn java(arguments: &[String]) -> Option<String> {
    const TAKES_VALUE: [&str; 14] = [
        "-cp",
        "-classpath",
        "--class-path",
        "-p",
        "--module-path",
        "--add-modules",
        "--add-opens",
        "--add-exports",
        "--add-reads",
        "--patch-module",
        "--limit-modules",
        "--upgrade-module-path",
        "--source",
        "--describe-module",
    ];
    // What the OpenTelemetry and Spring conventions call the service.
    let property = ["-Dotel.service.name=", "-Dspring.application.name="];
    let named = property.iter().find_map(|prefix| {
        arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(prefix))
    });
    if let Some(name) = named.filter(|name| !name.is_empty()) {
        return Some(name.to_owned());
    }
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "-jar" => return rest.next().map(|path| without_version(file_name(path))),
            "-m" | "--module" => return rest.next().map(|module| class_name(module)),
            option if TAKES_VALUE.contains(&option) => drop(rest.next()),
            option if option.starts_with(['-', '@']) => {
                if let Some(module) = option.strip_prefix("--module=") {
                    return Some(class_name(module));
                }
            }
            class => return Some(class_name(class)),
        }
    }
    None
}

/// `module/com.example.Main` → `Main`; `Main.java` → `Main`.
fn class_name(text: &str) -> String {
    let class = file_name(text.strip_suffix(".java").unwrap_or(text));
    class.rsplit('.').next().unwrap_or(class).to_owned()
}

/// `orders-1.4.2-SNAPSHOT.jar` → `orders`.
fn without_version(file: &str) -> String {
    let stem = file
        .strip_suffix(".jar")
        .or_else(|| file.strip_suffix(".war"))
        .unwrap_or(file);
    let version = stem
        .match_indices('-')
        .find(|(index, _)| stem[index + 1..].starts_with(|next: char| next.is_ascii_digit()));
    match version {
        Some((index, _)) if index > 0 => stem[..index].to_owned(),
        _ => stem.to_owned(),
    }
}
