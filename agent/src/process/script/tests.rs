//! Command lines as they are found on real hosts.

use std::path::Path;

use proptest::prelude::*;

use super::*;

#[track_caller]
fn check_in(directory: Option<&str>, executable: &str, command_line: &str, expected: &str) {
    let arguments: Vec<String> = command_line.split(' ').map(str::to_owned).collect();
    check_arguments(directory, executable, &arguments, expected);
}

#[track_caller]
fn check_arguments(
    directory: Option<&str>,
    executable: &str,
    arguments: &[String],
    expected: &str,
) {
    let found = script(Path::new(executable), arguments, directory.map(Path::new));
    let expected = match expected {
        "" => Script::None,
        "<parent>" => Script::AsParent,
        name => Script::Named(name.to_owned()),
    };
    assert_eq!(
        found, expected,
        "{executable}: {arguments:?} in {directory:?}"
    );
}

#[test]
fn python() {
    let directory = Some("/srv/orders");
    for (command_line, expected) in [
        ("python3 server.py", "server"),
        (
            "python3 -u -X dev /opt/billing/worker.py --queue high",
            "worker",
        ),
        ("python3 -Xdev -Wignore worker.py", "worker"),
        ("python main.py", "orders"),
        ("python src/main.py", "orders"),
        ("python /srv/payments/app.py", "payments"),
        ("python manage.py runserver 0.0.0.0:8000", "orders"),
        ("python ./app/__main__.py", "app"),
        ("python /srv/payments/", "payments"),
        ("python .", "orders"),
        ("python -m http.server 8000", "http.server"),
        ("python -m pkg.mod", "pkg.mod"),
        ("python -um pkg.mod", "pkg.mod"),
        ("python -mpkg.mod", "pkg.mod"),
        ("python -m pkg.__main__", "pkg"),
        ("python -c import(os)", ""),
        ("python -", ""),
        ("python", ""),
        (
            "python -c from_multiprocessing.spawn_import --multiprocessing-fork",
            "<parent>",
        ),
        ("/venv/bin/python /venv/bin/pgadmin4", "pgadmin4"),
    ] {
        check_in(directory, "/usr/bin/python3.11", command_line, expected);
    }
}

#[test]
fn python_application_servers() {
    for (command_line, expected) in [
        ("python /venv/bin/uvicorn app:api", "app"),
        (
            "python /venv/bin/uvicorn app:api --host 0.0.0.0 --port 8000 --workers 4",
            "app",
        ),
        ("python -m uvicorn --port 8000 orders.main:app", "orders"),
        (
            "python -m uvicorn --factory orders.api:create_app",
            "orders.api",
        ),
        (
            "python3 /venv/bin/uvicorn --log-config conf.json --app-dir src main:app",
            "main",
        ),
        (
            "python /usr/bin/gunicorn -k uvicorn.workers.UvicornWorker main:app",
            "main",
        ),
        (
            "python /usr/bin/gunicorn -w 4 -b 127.0.0.1:8000 shop.wsgi:application",
            "shop",
        ),
        (
            "python /usr/bin/gunicorn --bind unix:app.sock shop.wsgi",
            "shop",
        ),
        (
            "python /usr/bin/gunicorn -c python:conf.gunicorn shop.wsgi:application",
            "shop",
        ),
        (
            "python /usr/bin/gunicorn -b localhost:8000 main:create_app()",
            "main",
        ),
        ("python /usr/bin/hypercorn --bind fd:3 pkg.asgi:app", "pkg"),
        ("python /usr/bin/celery -A proj worker -l INFO", "proj"),
        (
            "python -m celery --app=proj.celery_app worker",
            "proj.celery_app",
        ),
        ("python /usr/bin/flask --app hello run", "hello"),
        ("python /usr/bin/flask --app shop.main:app run", "shop"),
        (
            "python -m streamlit run dashboard.py --server.port 80",
            "dashboard",
        ),
        ("python /usr/bin/fastapi run orders/main.py", "orders"),
    ] {
        check_in(
            Some("/srv/code"),
            "/usr/bin/python3.11",
            command_line,
            expected,
        );
    }
    // A title is one argument.
    for (title, expected) in [
        ("gunicorn: master [main:app]", "main"),
        ("gunicorn: worker [shop.wsgi:application]", "shop"),
        ("gunicorn: worker [checkout]", "checkout"),
        ("celeryd: celery@host:MainProcess", "celeryd"),
    ] {
        check_arguments(None, "/usr/bin/python3", &[title.to_owned()], expected);
    }
    check_in(
        None,
        "/usr/bin/uwsgi",
        "uwsgi --http :8000 --module shop.wsgi:application",
        "shop",
    );
    check_in(None, "/usr/bin/uwsgi", "uwsgi --ini /etc/uwsgi.ini", "");
}

#[test]
fn node() {
    let directory = Some("/srv/shop");
    for (command_line, expected) in [
        ("node server.js", "server"),
        ("node index.js", "shop"),
        ("node dist/index.js", "shop"),
        ("node ./src/main.mjs", "shop"),
        ("node /srv/pay/app.js", "pay"),
        (
            "node --max-old-space-size=4096 --require ./trace.js api.cjs",
            "api",
        ),
        (
            "node -r dotenv/config --inspect=0.0.0.0:9229 worker.ts",
            "worker",
        ),
        (
            "node --enable-source-maps /srv/pay/node_modules/.bin/next start",
            "pay",
        ),
        ("node node_modules/.bin/vite", "shop"),
        ("node /usr/lib/node_modules/npm/bin/npm-cli.js start", "npm"),
        ("node .", "shop"),
        ("node -e console.log(1)", ""),
        ("node", ""),
        ("bun run server.ts", "server"),
        ("deno run --allow-net server.ts", "server"),
    ] {
        let executable = match command_line.split(' ').next() {
            Some("bun") => "/usr/bin/bun",
            Some("deno") => "/usr/bin/deno",
            _ => "/usr/bin/node",
        };
        check_in(directory, executable, command_line, expected);
    }
    for (title, expected) in [
        ("npm run start", "npm"),
        ("next-server (v14.2.3)", "next-server"),
        ("PM2 v5.3.0: God Daemon (/root/.pm2)", "PM2"),
        ("node /srv/shop/server.js", "server"),
    ] {
        check_arguments(directory, "/usr/bin/node", &[title.to_owned()], expected);
    }
    // Nothing above the container's usual folder: its name is all there is.
    check_in(Some("/app"), "/usr/local/bin/node", "node index.js", "app");
    check_in(None, "/usr/local/bin/node", "node index.js", "index");
}

#[test]
fn java_programs() {
    for (command_line, expected) in [
        ("java -jar x.jar", "x"),
        (
            "java -Xmx1g -jar /srv/orders-1.4.2-SNAPSHOT.jar --spring.profiles.active=prod",
            "orders",
        ),
        ("java -jar log4j-2-bridge.jar", "log4j"),
        ("java com.example.Main", "Main"),
        (
            "java -cp a.jar:b.jar -Dx=y com.example.OrderService",
            "OrderService",
        ),
        (
            "java --add-opens java.base/java.lang=ALL-UNNAMED -p mods -m shop/com.shop.Server",
            "Server",
        ),
        (
            "java --module-path /es/lib --add-modules=jdk.net -m org.elasticsearch.server/org.elasticsearch.bootstrap.Elasticsearch",
            "Elasticsearch",
        ),
        ("java @args.txt kafka.Kafka server.properties", "Kafka"),
        ("java -Dotel.service.name=billing -jar app.jar", "billing"),
        ("java Main.java", "Main"),
        ("java -version", ""),
    ] {
        check_in(None, "/opt/jdk-17/bin/java", command_line, expected);
    }
}

#[test]
fn shells_and_others() {
    for (executable, command_line, expected) in [
        ("/bin/bash", "bash /opt/tools/backup.sh --all", "backup"),
        ("/bin/dash", "/bin/sh -eu ./entrypoint.sh", "entrypoint"),
        ("/bin/bash", "bash -euo pipefail deploy.sh", "deploy"),
        ("/bin/bash", "bash -c sleep", ""),
        ("/bin/bash", "-bash", ""),
        ("/bin/bash", "bash --login", ""),
        ("/bin/busybox", "sh /etc/init.d/rcS", "rcS"),
        ("/usr/bin/ruby3.1", "ruby bin/rails server", "shop"),
        ("/usr/bin/ruby3.1", "ruby worker.rb", "worker"),
        (
            "/usr/bin/perl",
            "perl -w /usr/share/munin/munin-node.pl",
            "munin-node",
        ),
        ("/usr/bin/php8.2", "php artisan serve", "shop"),
        ("/usr/bin/php8.2", "php -S 0.0.0.0:80", ""),
        (
            "/usr/bin/dotnet",
            "dotnet /app/Orders.Api.dll",
            "Orders.Api",
        ),
    ] {
        check_in(Some("/srv/shop"), executable, command_line, expected);
    }
}

#[test]
fn puma_titles() {
    for title in [
        "puma 6.4.2 (tcp://0.0.0.0:3000) [shop]",
        "puma: cluster worker 0: 123 [shop]",
    ] {
        check_arguments(None, "/usr/bin/ruby3.1", &[title.to_owned()], "shop");
    }
}

#[test]
fn programs_that_are_no_interpreters() {
    for (executable, command_line) in [
        ("/usr/sbin/nginx", "nginx: worker process"),
        (
            "/usr/sbin/nginx",
            "nginx: master process /usr/sbin/nginx -g daemon off;",
        ),
        (
            "/srv/api/target/release/api",
            "./target/release/api --port 80",
        ),
        ("/usr/lib/postgresql/15/bin/postgres", "postgres: walwriter"),
        (
            "/usr/bin/node_exporter",
            "node_exporter --web.listen-address=:9100",
        ),
        ("", ""),
    ] {
        check_in(Some("/"), executable, command_line, "");
        check_arguments(None, executable, &[command_line.to_owned()], "");
    }
    check_arguments(None, "/usr/bin/python3", &[], "");
}

proptest! {
    #[test]
    fn any_command_line_is_survived(
        executable in prop_oneof!["/bin/(python3|node|java|bash|ruby|php|busybox|uwsgi)", "\\PC{0,20}"],
        arguments in prop::collection::vec(
            prop_oneof!["\\PC{0,12}", "-[a-zA-Z]{1,4}", "[a-z.]{1,8}:[a-z()]{0,8}", "(\\.\\./|/|[a-z.]){0,6}", "é[a-z]?"],
            0..6,
        ),
        directory in prop::option::of("(/[a-z.]{1,6}){0,3}"),
    ) {
        let found = script(Path::new(&executable), &arguments, directory.as_deref().map(Path::new));
        if let Script::Named(name) = found {
            prop_assert!(!name.contains('\0'));
        }
    }
}
