//! How few tokens a text can become, told from its bytes alone, so that a text far over a limit is refused before it is read. Sound or
//! absent: it is only given for tokenizers in which every byte of a text ends in some token (byte-level BPE, BPE with byte fallback,
//! SentencePiece BPE with byte fallback), and then no token stands for more bytes than the longest one has.

use std::collections::HashSet;

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer as _};

use crate::decode_table::{byte_level_alphabet, fallback_byte};
use crate::tokenizer::Parts;

/// Bytes of text that one normalised byte may stand for. NFC: a composed character (two bytes or more) has at most four characters in
/// its decomposition, each written with at most four bytes. ASCII texts it leaves as they are.
const NFC_SHRINK: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LengthBound {
    pub max_token_bytes: usize,
    shrink: usize,        // of texts that are not ASCII
    strips: bool,         // some added token takes the spaces beside it along
    strips_as_text: bool, // one that is no special token does
}

impl LengthBound {
    /// No fewer tokens than this, special tokens around the text aside.
    pub fn least_tokens(&self, text: &str, removed_bytes: usize, special_as_text: bool) -> usize {
        if if special_as_text { self.strips_as_text } else { self.strips } {
            return 0;
        }
        let bytes = text.len() - removed_bytes;
        let shrink = if text.is_ascii() { 1 } else { self.shrink };
        bytes / shrink / self.max_token_bytes
    }
}

pub fn steps<'a>(step: &'a Value, list: &str) -> Vec<&'a Value> {
    match step.get(list).and_then(Value::as_array) {
        Some(inner) => inner.iter().flat_map(|step| steps(step, list)).collect(),
        None if step.is_null() => Vec::new(),
        None => vec![step],
    }
}

pub fn kind_of(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or("")
}

/// None where a step may leave out text of any length.
fn shrink_of(normalizer: &Value) -> Option<usize> {
    let mut shrink = 1;
    for step in steps(normalizer, "normalizers") {
        let text = |pointer| step.pointer(pointer).and_then(Value::as_str);
        match kind_of(step) {
            "Prepend" => {}
            "NFC" => shrink = usize::saturating_mul(shrink, NFC_SHRINK),
            "Replace" if text("/content")?.len() >= text("/pattern/String")?.len() => {}
            _ => return None,
        }
    }
    Some(shrink)
}

/// Whether no step of a pre-tokenizer leaves text out, and whether one makes bytes of it.
fn keeps_all(pre_tokenizer: &Value) -> Option<bool> {
    let mut byte_level = false;
    for step in steps(pre_tokenizer, "pretokenizers") {
        match kind_of(step) {
            "ByteLevel" => byte_level = true,
            "Metaspace" | "Digits" => {}
            "Split" | "Punctuation" if step.get("behavior").and_then(Value::as_str)? != "Removed" => {}
            _ => return None,
        }
    }
    Some(byte_level)
}

fn longest_added(parts: &Parts) -> usize {
    let spelled = |content: &String| {
        let mut normalized = NormalizedString::from(content.as_str());
        let changed = parts.normalizer.as_ref().map_or(Ok(()), |normalizer| normalizer.normalize(&mut normalized));
        content.len().max(if changed.is_ok() { normalized.get().len() } else { usize::MAX })
    };
    parts.added.get_added_tokens_decoder().values().map(|token| spelled(&token.content)).max().unwrap_or(0)
}

fn with_added(parts: &Parts, longest: usize, shrink: usize) -> Option<LengthBound> {
    let strips = |special: bool| {
        parts.added.get_added_tokens_decoder().values().any(|token| (token.lstrip || token.rstrip) && (special || !token.special))
    };
    let max_token_bytes = longest.max(longest_added(parts));
    (max_token_bytes > 0).then_some(LengthBound { max_token_bytes, shrink, strips: strips(true), strips_as_text: strips(false) })
}

/// Of a tokenizer.json and the parts that it became.
pub fn of_json(json: &Value, parts: &Parts) -> Option<LengthBound> {
    let vocabulary = json.pointer("/model/vocab")?.as_object()?;
    if json.pointer("/model/type").and_then(Value::as_str) != Some("BPE") {
        return None;
    }
    let shrink = shrink_of(&json["normalizer"])?;
    let byte_level = keeps_all(&json["pre_tokenizer"])?;
    let longest = if byte_level {
        // A character of a spelling is a byte of the text. Thirteen bytes are in no UTF-8 text, and some vocabularies lack them.
        let alphabet = byte_level_alphabet();
        let needed = |byte: u8| !matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff);
        let all_bytes = alphabet.iter().all(|(c, byte)| !needed(*byte) || vocabulary.contains_key(c.to_string().as_str()));
        all_bytes.then(|| vocabulary.keys().map(|spelling| spelling.chars().count()).max())??
    } else {
        let fallback = json.pointer("/model/byte_fallback").and_then(Value::as_bool) == Some(true);
        let all_bytes = vocabulary.keys().filter_map(|spelling| fallback_byte(spelling)).collect::<HashSet<u8>>();
        (fallback && all_bytes.len() == 256).then(|| vocabulary.keys().map(String::len).max())??
    };
    with_added(parts, longest, shrink)
}

/// Of a SentencePiece model whose normaliser keeps every byte and whose pieces cover all.
pub fn of_pieces<'a>(spellings: impl Iterator<Item = &'a str>, parts: &Parts) -> Option<LengthBound> {
    with_added(parts, spellings.map(str::len).max()?, 1)
}
