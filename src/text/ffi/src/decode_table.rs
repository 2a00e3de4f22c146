//! What each id contributes to a text, worked out once: then decoding is an append, needs no call into this crate, and can go
//! token by token. The rules are read from the `decoder` of a tokenizer.json; one that is not a rule per token is refused.

use std::collections::HashMap;

use serde_json::Value;

use crate::{invalid, Outcome};

/// How token spellings become bytes.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Rules {
    pub byte_level: bool,               // GPT-2's 256 visible characters, one per byte
    pub replace: Vec<(String, String)>, // in order
    pub byte_fallback: bool,            // <0xHH> is one byte
    pub strip_leading_space: bool,      // once, at the start of a text
}

/// A token of the vocabulary. Added tokens are those found in a text before the model sees it.
pub struct TokenSpelling {
    pub spelling: String,
    pub id: u32,
    pub special: bool,
    pub added: bool,
}

pub struct Entry<'a> {
    pub spelling: &'a str,
    pub bytes: &'a [u8],
    pub special: bool,
}

struct Slot {
    spelling: String,
    bytes: Vec<u8>,
    special: bool,
}

pub struct DecodeTable {
    rules: Rules,
    slots: Vec<Option<Slot>>,
}

/// A vocabulary this large is a mistake: the largest in use have under 300,000 ids. An id has a place of 56 bytes, also where it is the
/// only one.
const MAX_ID: u32 = 1 << 21;

impl Rules {
    /// Reads the `decoder` section of a tokenizer.json.
    pub fn from_decoder(decoder: &Value) -> Outcome<Rules> {
        let mut rules = Rules::default();
        match decoder.get("type").and_then(Value::as_str) {
            Some("Sequence") => {
                for step in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    rules.add(step)?;
                }
            }
            Some(_) => rules.add(decoder)?,
            None => return Err(invalid("it has no decoder, so ids cannot become text")),
        }
        if rules.byte_level && rules != (Rules { byte_level: true, ..Rules::default() }) {
            return Err(invalid("its decoder mixes ByteLevel with other steps, which is not supported"));
        }
        Ok(rules)
    }

    fn add(&mut self, step: &Value) -> Outcome<()> {
        let kind = step.get("type").and_then(Value::as_str).unwrap_or("");
        match kind {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Replace" => {
                let pattern = step.pointer("/pattern/String").and_then(Value::as_str);
                let content = step.get("content").and_then(Value::as_str);
                match (pattern, content) {
                    (Some(pattern), Some(content)) if !pattern.is_empty() => self.replace.push((pattern.into(), content.into())),
                    _ => return Err(invalid("its decoder replaces by a regular expression, which is not supported")),
                }
            }
            "Strip" => {
                let content = step.get("content").and_then(Value::as_str);
                let count = |key| step.get(key).and_then(Value::as_u64);
                match (content, count("start"), count("stop")) {
                    (_, Some(0), Some(0)) => {}
                    (Some(" "), Some(1), Some(0)) => self.strip_leading_space = true,
                    _ => {
                        return Err(invalid(format!(
                            "its decoder has the step {step}; of Strip only one leading space is supported"
                        )))
                    }
                }
            }
            "Metaspace" => {
                let mark = step.get("replacement").and_then(Value::as_str).unwrap_or("\u{2581}");
                self.replace.push((mark.into(), " ".into()));
                self.strip_leading_space |= step.get("prepend_scheme").and_then(Value::as_str) != Some("never");
            }
            other => return Err(invalid(format!(
                "its decoder has the step \"{other}\"; supported are ByteLevel, Metaspace, Replace, ByteFallback, Fuse and Strip"
            ))),
        }
        Ok(())
    }

    fn bytes_of(&self, token: &TokenSpelling, byte_level: &HashMap<char, u8>) -> Vec<u8> {
        let spelling = token.spelling.as_str();
        if self.byte_level {
            // An added token is found in the text as it is spelled, so it stands for itself: deepseek-llm's "\u{fc}" is that letter,
            // not the byte fc that the alphabet would make of it. So does a spelling with a character outside the alphabet.
            let byte = |c: char| if token.added { None } else { byte_level.get(&c).copied() };
            let bytes: Option<Vec<u8>> = spelling.chars().map(byte).collect();
            return bytes.unwrap_or_else(|| spelling.as_bytes().to_vec());
        }
        if self.byte_fallback {
            if let Some(byte) = fallback_byte(spelling) {
                return vec![byte];
            }
        }
        let text = self.replace.iter().fold(spelling.to_string(), |text, (from, to)| text.replace(from.as_str(), to));
        text.into_bytes()
    }
}

/// The byte of a spelling `<0xHH>`.
pub fn fallback_byte(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for the characters from U+0100 on.
pub fn byte_level_alphabet() -> HashMap<char, u8> {
    let itself = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let visible = (0..=255u8).filter(itself).map(|b| (char::from(b), b));
    let moved = (0..=255u8).filter(|b| !itself(b)).zip(0x100u32..);
    visible.chain(moved.filter_map(|(b, code)| char::from_u32(code).map(|c| (c, b)))).collect()
}

impl DecodeTable {
    /// A later token of the same id wins.
    pub fn new(rules: Rules, tokens: impl Iterator<Item = TokenSpelling>) -> Outcome<DecodeTable> {
        let alphabet = byte_level_alphabet();
        let mut slots: Vec<Option<Slot>> = Vec::new();
        for token in tokens {
            if token.id >= MAX_ID {
                let message = format!("its token \"{}\" has id {}; the limit is {MAX_ID}", token.spelling, token.id);
                return Err(invalid(message));
            }
            let at = token.id as usize;
            if at >= slots.len() {
                slots.resize_with(at + 1, || None);
            }
            let bytes = rules.bytes_of(&token, &alphabet);
            slots[at] = Some(Slot { spelling: token.spelling, bytes, special: token.special });
        }
        Ok(DecodeTable { rules, slots })
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    pub fn get(&self, id: usize) -> Option<Entry<'_>> {
        let slot = self.slots.get(id)?.as_ref()?;
        Some(Entry { spelling: &slot.spelling, bytes: &slot.bytes, special: slot.special })
    }
}
