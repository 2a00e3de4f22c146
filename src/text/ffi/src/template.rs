//! A chat template, rendered as Hugging Face's `apply_chat_template` does: Jinja with `trim_blocks`, `lstrip_blocks`, loop controls,
//! Python's methods, `raise_exception`, `strftime_now` and a plain `tojson`. Fuel bounds steps and the bytes they make; the writer
//! bounds the output.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

use crate::{invalid, python, strftime, Failure, Outcome, RESOURCE_EXHAUSTED};

const NAME: &str = "chat template";
const NOW: &str = "__quire_now_unix_s";

pub struct Template {
    environment: Environment<'static>,
    variables: serde_json::Map<String, serde_json::Value>,
    max_steps: u64,
    max_output_bytes: u64,
}

const MAX_MESSAGE_BYTES: usize = 256;

/// A template's words may be its messages' text, of any length: what is told of them has a bound.
fn cut(message: String) -> String {
    if message.len() <= MAX_MESSAGE_BYTES {
        return message;
    }
    let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &message[..end])
}

/// What a template said with raise_exception.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn strftime_now(state: &State, format: String) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|now| now.as_i64()).unwrap_or(0);
    strftime::strftime(&format, now)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: format \"{format}\" is not understood")))
}

struct Bounded {
    text: Vec<u8>,
    max_bytes: u64,
    over: bool,
}

impl Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.text.len() + bytes.len()) as u64 > self.max_bytes {
            self.over = true;
            return Err(io::ErrorKind::Other.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn parse_object(json: &[u8], what: &str) -> Outcome<serde_json::Map<String, serde_json::Value>> {
    if json.is_empty() {
        return Ok(serde_json::Map::new());
    }
    serde_json::from_slice(json).map_err(|e| invalid(format!("{what} are not a JSON object: {e}")))
}

fn raised(error: &Error) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    while let Some(now) = cause {
        if let Some(raised) = now.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        cause = now.source();
    }
    None
}

impl Template {
    pub fn new(source: &str, variables: &[u8], max_steps: u64, max_output_bytes: u64) -> Outcome<Template> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| invalid(e.to_string()))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(max_steps));
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("indent", python::indent);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, source.to_string())
            .map_err(|e| invalid(format!("chat template does not parse: {e}")))?;
        Ok(Template {
            environment,
            variables: parse_object(variables, "chat template's variables")?,
            max_steps,
            max_output_bytes,
        })
    }

    pub fn render(&self, variables: &[u8], now_unix_s: i64) -> Outcome<String> {
        let mut all = self.variables.clone();
        all.extend(parse_object(variables, "chat variables")?);
        all.insert(NOW.into(), now_unix_s.into());
        let template = self.environment.get_template(NAME).map_err(|e| invalid(e.to_string()))?;
        let mut out = Bounded { text: Vec::new(), max_bytes: self.max_output_bytes, over: false };
        let outcome = template.render_captured_to(Value::from(Serde(&all)), &mut out).map(|_| ());
        if let Err(error) = outcome {
            return Err(self.failure(&error, out.over));
        }
        String::from_utf8(out.text).map_err(|e| invalid(format!("chat template made text that is not UTF-8: {e}")))
    }

    fn failure(&self, error: &Error, output_over: bool) -> Failure {
        if output_over {
            let message = format!("chat template's output passes {} bytes (max_output_bytes)", self.max_output_bytes);
            return Failure { code: RESOURCE_EXHAUSTED, message };
        }
        if let Some(message) = raised(error) {
            return invalid(format!("chat template: {}", cut(message)));
        }
        if error.kind() == ErrorKind::OutOfFuel {
            let message = format!("chat template takes more than {} steps (max_steps)", self.max_steps);
            return Failure { code: RESOURCE_EXHAUSTED, message };
        }
        invalid(format!("chat template: {}", cut(error.to_string())))
    }
}
