//! A chat template, rendered as Hugging Face's `apply_chat_template` does: Jinja with `trim_blocks`, `lstrip_blocks`, loop controls,
//! Python's methods, `raise_exception`, `strftime_now`, `generation` tags and a plain `tojson`. Fuel bounds steps and the bytes that
//! they make, `template_source` the parser's work, `value_bounds` and `bounded_filters` what one step can work on.

use std::collections::BTreeSet;

use minijinja::machinery::{self, CodeGenerator};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

use crate::value_bounds::{self, Passed, MAX_NAMES};
use crate::{
    bounded_filters, checked_tree, invalid, loop_exits, python, strftime, template_source, Failure, Outcome, RESOURCE_EXHAUSTED,
};

const NAME: &str = "chat template";
const NOW: &str = "__quire_now_unix_s";

pub struct Template {
    source: String,
    syntax: SyntaxConfig,
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

/// A date in words has some ten directives, and each is worked out for two bytes.
const MAX_DATE_BYTES: usize = 1024;

fn strftime_now(state: &State, format: String) -> Result<String, Error> {
    if format.len() > MAX_DATE_BYTES {
        let what = format!("strftime_now: a format of {} bytes; {MAX_DATE_BYTES} is the limit", format.len());
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    let now = state.lookup(NOW).and_then(|now| now.as_i64()).unwrap_or(0);
    state.consume_fuel(format.len() as u64)?;
    strftime::strftime(&format, now)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: format \"{format}\" is not understood")))
}

fn parse_object(json: &[u8], what: &str) -> Outcome<serde_json::Map<String, serde_json::Value>> {
    if json.is_empty() {
        return Ok(serde_json::Map::new());
    }
    serde_json::from_slice(json).map_err(|e| invalid(format!("{what} are not a JSON object: {e}")))
}

/// What a filter or function of this crate gave as the cause.
fn cause<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    let mut cause = std::error::Error::source(error);
    while let Some(at) = cause {
        if let Some(found) = at.downcast_ref::<T>() {
            return Some(found);
        }
        cause = at.source();
    }
    None
}

impl Template {
    pub fn new(source: &str, variables: &[u8], max_steps: u64, max_output_bytes: u64) -> Outcome<Template> {
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| invalid(e.to_string()))?;
        template_source::check(source, &syntax)?;
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(python::method);
        environment.set_fuel(Some(max_steps));
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("indent", python::indent);
        environment.add_test("iterable", python::is_iterable);
        environment.add_test("sequence", python::is_sequence);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        value_bounds::add_to(&mut environment, max_output_bytes);
        bounded_filters::add_to(&mut environment);
        let variables = parse_object(variables, "chat template's variables")?;
        let source = template_source::without_generation_tags(source, &syntax);
        let made = Template { source, syntax, environment, variables, max_steps, max_output_bytes };
        made.compile().map_err(|e| invalid(format!("chat template does not parse: {e}")))?;
        Ok(made)
    }

    /// Its instructions point into the source; to compile it again takes less than to render it.
    fn compile(&self) -> Result<CodeGenerator<'_>, Error> {
        let tree = machinery::parse(&self.source, NAME, self.syntax.clone())?;
        loop_exits::check(&tree)?;
        let mut names = BTreeSet::new();
        checked_tree::assigned_names(&tree, &mut names);
        if names.len() > MAX_NAMES {
            let what = format!("it sets {} attributes of namespaces; {MAX_NAMES} is the limit", names.len());
            return Err(Error::new(ErrorKind::SyntaxError, what));
        }
        let mut code = CodeGenerator::new(NAME, &self.source);
        code.compile_stmt(&checked_tree::tree(&tree));
        Ok(code)
    }

    pub fn render(&self, variables: &[u8], now_unix_s: i64) -> Outcome<String> {
        let mut all = self.variables.clone();
        all.extend(parse_object(variables, "chat variables")?);
        all.insert(NOW.into(), now_unix_s.into());
        let text = self.run(Value::from(Serde(&all))).map_err(|error| self.failure(&error))?;
        if text.len() as u64 > self.max_output_bytes {
            return Err(self.exhausted(&value_bounds::output_passed(self.max_output_bytes)));
        }
        Ok(text)
    }

    fn run(&self, variables: Value) -> Result<String, Error> {
        let (instructions, blocks) = self.compile()?.finish();
        let mut text = String::new();
        let mut out = machinery::make_string_output(&mut text);
        machinery::eval(&self.environment, &instructions, variables, &blocks, &mut out, AutoEscape::None).map(|_| ())?;
        Ok(text)
    }

    fn exhausted(&self, what: &str) -> Failure {
        Failure { code: RESOURCE_EXHAUSTED, message: format!("chat template {what}") }
    }

    fn failure(&self, error: &Error) -> Failure {
        if let Some(Raised(message)) = cause(error) {
            return invalid(format!("chat template: {}", cut(message.clone())));
        }
        if let Some(Passed(what)) = cause(error) {
            return self.exhausted(what);
        }
        if error.kind() == ErrorKind::OutOfFuel {
            return self.exhausted(&format!("takes more than {} steps (max_steps)", self.max_steps));
        }
        invalid(format!("chat template: {}", cut(error.to_string())))
    }
}
