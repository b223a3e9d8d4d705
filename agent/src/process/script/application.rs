//! The application that an ASGI, WSGI or task server loads: `pkg.module:attribute`.

use super::GENERIC_STEMS;

/// The application among a server's arguments.
pub(super) fn application_argument(arguments: &[String]) -> Option<String> {
    // Options whose value could be taken for one.
    let misleading = [
        "-k",
        "--worker-class",
        "--logger-class",
        "-c",
        "--config",
        "-b",
        "--bind",
        "--log-config",
        "--paste",
        "-e",
        "--env",
        "--loop",
        "--http",
        "--ws",
        "-n",
        "--name",
    ];
    let mut module = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if misleading.contains(&argument.as_str()) {
            rest.next();
        } else if let Some(name) = application(argument) {
            return Some(name);
        } else if module.is_none() && is_module_path(argument) && !argument.starts_with('-') {
            // gunicorn takes a bare module as well (its attribute is `application`); it is
            // believed only where nothing better comes, as it may be an option's value.
            module = Some(argument);
        }
    }
    module
        .filter(|name| name.contains('.'))
        .map(|name| without_generic_tail(name).to_owned())
}

/// `orders.main:create_app()` → `orders`; `main:app` → `main`.
pub(super) fn application(argument: &str) -> Option<String> {
    let (module, attribute) = argument.split_once(':')?;
    let attribute_is_named =
        attribute.starts_with(|first: char| first.is_alphabetic() || first == '_');
    let is_address = ["unix", "fd", "python", "localhost", "http", "https"].contains(&module);
    if !attribute_is_named || is_address || !is_module_path(module) {
        return None;
    }
    Some(without_generic_tail(module).to_owned())
}

fn is_module_path(text: &str) -> bool {
    text.split('.').all(|part| {
        part.starts_with(|first: char| first.is_alphabetic() || first == '_')
            && part
                .chars()
                .all(|character| character.is_alphanumeric() || character == '_')
    })
}

/// The module that a `-A`, `--app` or `--module` option names.
pub(super) fn module_of(text: &str) -> String {
    application(text).unwrap_or_else(|| without_generic_tail(text).to_owned())
}

/// `orders.main` → `orders`; a module that stands alone keeps its name.
pub(super) fn without_generic_tail(module: &str) -> &str {
    match module.rsplit_once('.') {
        Some((package, last)) if GENERIC_STEMS.contains(&last) => package,
        _ => module,
    }
}
