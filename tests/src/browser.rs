//! A headless Chromium that is used as a person would: it is told where to go, clicks, types, and says
//! what is on the page. Over the DevTools protocol (<https://chromedevtools.github.io/devtools-protocol/>),
//! whose messages go through a pair of pipes: when those are closed, the browser ends by itself.

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Write as _, pipe};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::child::Child;
use crate::prerequisite;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Of the window, in pixels, where nothing else is said.
const WIDTH: u32 = 1200;

/// Environment variable with a folder for pictures of the pages that are looked at.
const PICTURES: &str = "E2E_PICTURES";

/// The protocol goes through the descriptors 3 and 4; its messages end in a zero byte.
const THROUGH_PIPES: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#;

/// A browser with one visible tab. Dropping it ends it.
#[derive(Debug)]
pub struct Browser {
    to: PipeWriter,
    from: Receiver<Value>,
    number: u64,
    /// Sessions with the tabs, the newest last.
    tabs: Vec<String>,
    /// Which of them is looked at.
    at: usize,
    /// Of the tabs whose page has been loaded, which nobody has waited for yet.
    loaded: Vec<String>,
    complaints: Vec<String>,
    /// The only host that a page may ask.
    host: String,
    /// What the next question of a page is answered with.
    answer: Option<String>,
    _child: Child,
}

impl Browser {
    /// One whose pages may load nothing from anywhere but `address`.
    ///
    /// # Errors
    /// When it is missing or does not start.
    pub fn start(address: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (input, to) = pipe()?;
        let (from, output) = pipe()?;
        let mut command = Command::new(prerequisite::on_path("sh")?);
        command.args(["-c", THROUGH_PIPES]);
        command.arg(prerequisite::on_path("chromium-headless-shell")?);
        let profile = folder.path().join("profile");
        command.arg(format!("--user-data-dir={}", profile.display()));
        // The tests run as root, for whom the sandbox can't be made.
        command.args(["--no-sandbox", "--remote-debugging-pipe", "--disable-gpu"]);
        command.args(["--disable-background-networking", "--hide-scrollbars"]);
        command.args([&format!("--window-size={WIDTH},800"), "about:blank"]);
        let child = Child::spawn_between(input, output, "chromium", command, folder)?;
        let mut browser = Self {
            to,
            from: messages(from),
            number: 0,
            tabs: Vec::new(),
            at: 0,
            loaded: Vec::new(),
            complaints: Vec::new(),
            host: format!("http://{address}/"),
            answer: None,
            _child: child,
        };
        // Tabs wait until they are watched.
        let attach = json!({"autoAttach": true, "waitForDebuggerOnStart": true, "flatten": true});
        browser.call_browser("Target.setAutoAttach", attach)?;
        browser.wait_for("a tab", |browser| Ok(!browser.tabs.is_empty()))?;
        Ok(browser)
    }

    /// Goes to a page of the host and waits until it is there.
    ///
    /// # Errors
    /// When it can't be loaded.
    pub fn open(&mut self, path: &str) -> Result<()> {
        self.loaded.clear();
        let url = format!("{}{}", self.host, path.trim_start_matches('/'));
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(answer["errorText"].is_null(), "{url}: {answer}");
        self.wait_for_page()
    }

    /// Waits until the page that is loading is there.
    ///
    /// # Errors
    /// After 20 seconds.
    pub fn wait_for_page(&mut self) -> Result<()> {
        let tab = self.tab();
        self.wait_for("a page", |browser| Ok(browser.loaded.contains(&tab)))?;
        self.loaded.retain(|loaded| *loaded != tab);
        Ok(())
    }

    /// Does `work`, which opens another tab, and goes there when its page has been loaded.
    ///
    /// # Errors
    /// Those of `work`, and when there is no further tab.
    pub fn follow(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let before = self.tabs.len();
        work(self)?;
        self.wait_for("another tab", |browser| Ok(browser.tabs.len() > before))?;
        self.at = before;
        self.wait_for_page()
    }

    /// Closes the tab and goes back to the one before.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn close(&mut self) -> Result<()> {
        self.call("Page.close", json!({}))?;
        self.tabs.remove(self.at);
        self.at -= 1;
        Ok(())
    }

    /// The value of an expression on the page, promises awaited.
    ///
    /// # Errors
    /// When it throws.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let parameters =
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", parameters)?;
        ensure!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        Ok(answer["result"]["value"].clone())
    }

    /// The value of `expression`, of any type.
    ///
    /// # Errors
    /// When it throws, or is not of that type.
    pub fn get<T: DeserializeOwned>(&mut self, expression: &str) -> Result<T> {
        let value = self.value(expression)?;
        serde_json::from_value(value.clone()).with_context(|| format!("{expression}: {value}"))
    }

    /// Waits until `condition` holds on the page.
    ///
    /// # Errors
    /// When it throws, or does not hold after 20 seconds.
    pub fn until(&mut self, condition: &str) -> Result<()> {
        self.wait_for(condition, |browser| Ok(browser.value(condition)? == true))
    }

    /// Clicks the middle of an element, which must be what is seen there.
    ///
    /// # Errors
    /// When there is no such element, or another one covers it.
    pub fn click(&mut self, element: &str) -> Result<()> {
        self.mouse(element, &["mouseMoved", "mousePressed", "mouseReleased"])
    }

    /// Moves the mouse to the middle of an element.
    ///
    /// # Errors
    /// As [`Self::click`].
    pub fn hover(&mut self, element: &str) -> Result<()> {
        self.mouse(element, &["mouseMoved"])
    }

    /// Clicks an element and types a text in place of what stands there.
    ///
    /// # Errors
    /// As [`Self::click`].
    pub fn type_into(&mut self, element: &str, text: &str) -> Result<()> {
        self.click(element)?;
        self.value("document.activeElement.select()")?;
        if text.is_empty() {
            return self.press("Backspace", 0);
        }
        self.call("Input.insertText", json!({ "text": text }))?;
        Ok(())
    }

    /// Presses a key, with modifiers (2: Ctrl).
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn press(&mut self, key: &str, modifiers: u32) -> Result<()> {
        let code = match key {
            "Backspace" => 8,
            "Escape" => 27,
            _ => u32::from(key.as_bytes()[0].to_ascii_uppercase()),
        };
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "modifiers": modifiers,
                "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Says what a page is told that asks for a text next.
    pub fn will_answer(&mut self, text: &str) {
        self.answer = Some(text.to_owned());
    }

    /// Chooses an option of a `select` by the beginning of its text.
    ///
    /// # Errors
    /// When there is none.
    pub fn choose(&mut self, element: &str, option: &str) -> Result<()> {
        // The list of options is the system's, and nobody can click it here.
        let chosen = self.value(&format!(
            "(() => {{ const select = {element}; \
             const option = [...select.options].find((one) => one.text.startsWith({})); \
             if (!option || !select.checkVisibility()) return false; \
             select.value = option.value; \
             select.dispatchEvent(new Event('change', {{ bubbles: true }})); return true; }})()",
            json!(option)
        ))?;
        ensure!(chosen == true, "{element} has no option {option:?}");
        Ok(())
    }

    /// Looks at the page in a wide and in a narrow window, light and dark, and finds texts that are cut, lie
    /// over others or can hardly be read. The pictures go into the folder `E2E_PICTURES`, if there is one.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_looks(&mut self, name: &str) -> Result<()> {
        let mut wrong = Vec::new();
        for (width, scheme) in [
            (400, "dark"),
            (400, "light"),
            (WIDTH, "dark"),
            (WIDTH, "light"),
        ] {
            self.show_as(width, scheme)?;
            let found: Vec<String> = self.get(include_str!("layout.js"))?;
            wrong.extend(found.iter().map(|one| format!("{width} {scheme}: {one}")));
            if let Some(folder) = std::env::var_os(PICTURES) {
                let file = format!("{name}-{width}-{scheme}.png");
                self.picture(&Path::new(&folder).join(file))?;
            }
        }
        ensure!(wrong.is_empty(), "{name}: {wrong:#?}");
        Ok(())
    }

    /// Sets the window's width in pixels and which colours the person prefers.
    fn show_as(&mut self, width: u32, scheme: &str) -> Result<()> {
        let window =
            json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", window)?;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media)?;
        // Observers of sizes run with the next frame.
        self.value("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")?;
        Ok(())
    }

    fn picture(&mut self, path: &Path) -> Result<()> {
        let whole = json!({"captureBeyondViewport": true});
        let answer = self.call("Page.captureScreenshot", whole)?;
        let picture = answer["data"].as_str().context("no picture")?;
        std::fs::write(path, BASE64_STANDARD.decode(picture)?)?;
        Ok(())
    }

    /// Looks whether a page gave reason to complain: errors in the console, exceptions, dialogs, what a policy
    /// refused, requests to other hosts or without an answer.
    ///
    /// # Errors
    /// All of it.
    pub fn check_no_complaints(&self) -> Result<()> {
        ensure!(self.complaints.is_empty(), "{:#?}", self.complaints);
        Ok(())
    }

    fn mouse(&mut self, element: &str, kinds: &[&str]) -> Result<()> {
        let at: [f64; 2] = self
            .get(&format!(
                "(() => {{ const element = {element}; \
                 element.scrollIntoView({{ block: 'nearest' }}); \
                 const box = element.getBoundingClientRect(); \
                 const [x, y] = [box.x + box.width / 2, box.y + box.height / 2]; \
                 const seen = document.elementFromPoint(x, y); \
                 return element === seen || element.contains(seen) ? [x, y] : null; }})()"
            ))
            .with_context(|| format!("{element} can't be clicked"))?;
        for kind in kinds {
            let pressed = json!({"type": kind, "x": at[0], "y": at[1], "clickCount": 1,
                "button": if *kind == "mouseMoved" { "none" } else { "left" }});
            self.call("Input.dispatchMouseEvent", pressed)?;
        }
        Ok(())
    }

    fn tab(&self) -> String {
        self.tabs.get(self.at).cloned().unwrap_or_default()
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        let tab = self.tab();
        self.call_in(Some(&tab), method, parameters)
    }

    fn call_browser(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.call_in(None, method, parameters)
    }

    fn call_in(&mut self, tab: Option<&str>, method: &str, parameters: Value) -> Result<Value> {
        let number = self.send(tab, method, parameters)?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let message = self.receive(deadline).context(method.to_owned())?;
            if message["id"] == number {
                let error = &message["error"];
                ensure!(error.is_null(), "{method}: {error}");
                return Ok(message["result"].clone());
            }
        }
    }

    fn send(&mut self, tab: Option<&str>, method: &str, parameters: Value) -> Result<u64> {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method});
        message["params"] = parameters;
        if let Some(tab) = tab {
            message["sessionId"] = json!(tab);
        }
        self.to.write_all(format!("{message}\0").as_bytes())?;
        Ok(self.number)
    }

    /// The next message; an event is taken note of as well.
    fn receive(&mut self, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = self.from.recv_timeout(left)?;
        if message["method"].is_string() {
            self.take(&message)?;
        }
        Ok(message)
    }

    fn wait_for(
        &mut self,
        what: &str,
        mut is_there: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while !is_there(self)? {
            if Instant::now() > deadline {
                bail!("{what}: not there after {TIMEOUT:?}");
            }
            // Nothing that is waited for has to come with an event.
            let _ = self.receive(Instant::now() + Duration::from_millis(20));
        }
        Ok(())
    }

    fn take(&mut self, event: &Value) -> Result<()> {
        let parameters = &event["params"];
        let tab = event["sessionId"].as_str();
        match event["method"].as_str().unwrap_or_default() {
            "Target.attachedToTarget" if parameters["targetInfo"]["type"] == "page" => {
                let tab = parameters["sessionId"].as_str().context("a session")?;
                for domain in ["Page", "Runtime", "Log", "Network"] {
                    self.send(Some(tab), &format!("{domain}.enable"), json!({}))?;
                }
                self.send(Some(tab), "Runtime.runIfWaitingForDebugger", json!({}))?;
                self.tabs.push(tab.to_owned());
            }
            "Page.loadEventFired" => self.loaded.extend(tab.map(str::to_owned)),
            "Page.javascriptDialogOpening" => {
                let text = self.answer.take();
                if text.is_none() {
                    self.complaints.push(format!("a dialog: {parameters}"));
                }
                let answer = json!({"accept": text.is_some(), "promptText": text});
                self.send(tab, "Page.handleJavaScriptDialog", answer)?;
            }
            "Runtime.exceptionThrown" => self.complaints.push(parameters.to_string()),
            "Runtime.consoleAPICalled" if parameters["type"] == "error" => {
                self.complaints.push(parameters.to_string());
            }
            "Log.entryAdded" if parameters["entry"]["level"] == "error" => {
                self.complaints.push(parameters["entry"].to_string());
            }
            "Network.loadingFailed" => self.complaints.push(parameters.to_string()),
            "Network.requestWillBeSent" => {
                let url = parameters["request"]["url"].as_str().unwrap_or_default();
                if !url.starts_with(&self.host) && !url.starts_with("data:") {
                    self.complaints.push(format!("a request of {url}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Reads until the browser is gone.
fn messages(from: PipeReader) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for message in BufReader::new(from).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else {
                return;
            };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    receiver
}
