//! What templates expect of Python and Jinja2 and minijinja does otherwise: JSON, `indent`, what is iterable or a sequence.
//!
//! JSON as Python's `json.dumps` writes it, which is what templates were written against: `", "` and `": "` between items, `repr`
//! of floats, no escapes for HTML or, unless asked for, for non-ASCII.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use crate::value_bounds::{check_parts, BYTES_PER_STEP};

/// Python's `str.splitlines`.
fn lines_of(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let is_end = |c| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
        let at = rest.find(is_end).unwrap_or(rest.len());
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(0, char::len_utf8) };
        let line = &rest[..at];
        rest = &rest[at + end..];
        Some(line)
    })
}

/// `x is iterable`: none is not, though a loop over it is one over nothing. To iterate a text its characters are counted first.
pub fn is_iterable(value: &Value) -> bool {
    value.as_str().is_some() || (!value.is_none() && value.try_iter().is_ok())
}

/// `x is sequence`: what has a length and places or keys, a text and a map too.
pub fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// `text | indent(width=4, first=False, blank=False)` as Jinja2 has it: a newline at the end stays one, where minijinja drops it.
pub fn indent(
    text: String,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => kwargs.get::<Option<Value>>("width")?,
    };
    let first = first.or(kwargs.get::<Option<bool>>("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get::<Option<bool>>("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let by = match width.as_ref().map(|width| (width.as_usize(), width.as_str())) {
        None => " ".repeat(4),
        Some((Some(spaces), _)) if spaces <= MAX_INDENT => " ".repeat(spaces),
        Some((_, Some(text))) if text.len() <= MAX_INDENT => text.to_string(),
        Some(_) => {
            let message = format!("indent: width must be a number up to {MAX_INDENT} or text of as many bytes");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    let ended = text + "\n";
    let added = lines_of(&ended).count() * by.len();
    if added > MAX_INDENT_BYTES {
        let message = format!("indent: it would add {added} bytes; {MAX_INDENT_BYTES} is the limit");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let mut out = String::new();
    for (at, line) in lines_of(&ended).enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(out)
}

const MAX_INDENT: usize = 64; // bytes of a line, and of a separator
const MAX_INDENT_BYTES: usize = 32 << 20;
const MAX_PADDING_BYTES: usize = 32 << 20;
const PARTS_PER_STEP: usize = 2;
const DIGITS_PER_STEP: usize = 4;

/// For bytes about to be made; minijinja asks once they are there.
fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / BYTES_PER_STEP)
}

/// Each field of a format may be the longest of the arguments.
pub fn pay_for_fields<'a>(state: &State, fields: usize, args: impl Iterator<Item = &'a Value>) -> Result<(), Error> {
    if fields == 0 {
        return Ok(());
    }
    let longest = args.map(|arg| arg.as_str().map_or_else(|| arg.to_string().len(), str::len)).max().unwrap_or(0);
    pay(state, fields.saturating_mul(longest))
}

/// Each character may be compared with all of `chars`.
pub fn pay_for_strip(state: &State, text: &str, chars: &str) -> Result<(), Error> {
    pay(state, text.len().saturating_mul(chars.chars().count()))
}

/// A list of parts that may be a byte each.
pub fn pay_for_split(state: &State, text: &str, at: Option<&str>) -> Result<(), Error> {
    let parts = match at {
        Some("") => text.len(),
        Some(at) => text.matches(at).count(),
        None => text.split_whitespace().count(),
    };
    check_parts(parts)?;
    state.consume_fuel((parts / PARTS_PER_STEP) as u64)
}

/// Widths and precisions that the fields of a format spell, in sum: the numbers before each `}`, with what may stand between.
fn widths_of(text: &str) -> usize {
    let in_spec = |c: &char| c.is_ascii_alphanumeric() || matches!(c, ',' | '.' | '_' | '%');
    let numbers_before_end = |part: &str| {
        let length = part.chars().rev().take_while(in_spec).count(); // each of one byte
        let numbers = part[part.len() - length..].split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
        numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).fold(0, usize::saturating_add)
    };
    let parts = text.split('}').collect::<Vec<_>>();
    parts[..parts.len() - 1].iter().map(|part| numbers_before_end(part)).fold(0, usize::saturating_add)
}

/// Its library pads to any width, and works out the digits of a float one by one.
fn pay_for_widths(state: &State, text: &str) -> Result<(), Error> {
    let widths = widths_of(text);
    let bytes = widths.saturating_mul(if text.is_ascii() { 1 } else { 4 }); // what fills may be any character
    if bytes > MAX_PADDING_BYTES {
        let message = format!("format: its fields are {bytes} bytes wide; {MAX_PADDING_BYTES} is the limit");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    state.consume_fuel((bytes / DIGITS_PER_STEP) as u64)
}

/// A method of Python's. `format` may repeat its arguments, and pad each.
pub fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (name, value.as_str(), args.first().and_then(Value::as_str)) {
        ("format", Some(text), _) => {
            pay_for_widths(state, text)?;
            pay_for_fields(state, text.matches('{').count(), args.iter())?;
        }
        ("strip" | "lstrip" | "rstrip", Some(text), Some(chars)) => pay_for_strip(state, text, chars)?,
        ("split", Some(text), at) => pay_for_split(state, text, at)?,
        ("splitlines", Some(text), _) => pay_for_split(state, text, Some("\n"))?,
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

struct Style {
    indent: Option<String>, // of one level; absent: one line
    item: String,
    key: String,
    ascii: bool,
    sort_keys: bool,
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    style: &'a Style,
    out: String,
    paid_bytes: usize,
}

/// Deeper than any schema of a tool, and far from the end of a thread's stack.
const MAX_DEPTH: usize = 128;
const MAX_JSON_BYTES: usize = 32 << 20;

fn unserializable(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what} cannot be written as JSON"))
}

/// `value | tojson(indent=None, ensure_ascii=False, separators=None, sort_keys=False)`.
pub fn tojson(state: &State, value: Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = indent.filter(|v| !v.is_none()).map(|v| match v.as_usize() {
        Some(width) => " ".repeat(width.min(MAX_INDENT)),
        None => v.as_str().unwrap_or_default().chars().take(MAX_INDENT).collect(),
    });
    let separators = kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none());
    let separator = |at: usize, default: &str| match &separators {
        None => Ok(default.to_string()),
        Some(pair) => match pair.get_item_by_index(at)?.as_str() {
            Some(text) if text.len() <= MAX_INDENT => Ok(text.to_string()),
            _ => {
                let message = format!("tojson: separators must be two texts of up to {MAX_INDENT} bytes each");
                Err(Error::new(ErrorKind::InvalidOperation, message))
            }
        },
    };
    let style = Style {
        item: separator(0, if indent.is_some() { "," } else { ", " })?,
        key: separator(1, ": ")?,
        indent,
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut writer = Writer { state, style: &style, out: String::new(), paid_bytes: 0 };
    writer.value(&value, 0)?;
    Ok(writer.out)
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(unserializable(format!("a value nested more than {MAX_DEPTH} deep")));
        }
        self.check_length()?;
        let unpaid = self.out.len() - self.paid_bytes;
        if unpaid as u64 >= BYTES_PER_STEP {
            pay(self.state, unpaid)?;
            self.paid_bytes = self.out.len();
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container('[', ']', &items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sort_keys {
                    keys.sort();
                }
                self.container('{', '}', &keys, depth, |writer, key| {
                    writer.key(key)?;
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            other => return Err(unserializable(format!("a value of kind {other}"))),
        }
        Ok(())
    }

    fn check_length(&self) -> Result<(), Error> {
        if self.out.len() > MAX_JSON_BYTES {
            return Err(unserializable(format!("a value of more than {MAX_JSON_BYTES} bytes")));
        }
        Ok(())
    }

    fn container(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.out.push_str(&self.style.item);
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default())?,
            ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                self.out.push('"');
                self.value(key, 0)?;
                self.out.push('"');
            }
            other => return Err(unserializable(format!("a key of kind {other}"))),
        }
        self.out.push_str(&self.style.key);
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
        } else {
            self.out.push_str(&float_repr(f64::try_from(value.clone())?));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.out.push('"');
        for c in text.chars() {
            self.check_length()?;
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.style.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str("\\u");
                        let digit = |place: u32| char::from_digit(u32::from(*unit) >> (4 * place) & 15, 16).unwrap_or('0');
                        self.out.extend([digit(3), digit(2), digit(1), digit(0)]);
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

/// Python's `repr` of a float. Rust's `{:?}` finds the same digits and changes to exponents at the same places; Python signs the
/// exponent and gives it two digits.
fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
    }
}
