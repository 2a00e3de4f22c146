//! Checks SentencePiece's precompiled character map before the library reads it: it begins with the bytes of its trie (u32, little
//! endian), and spm_precompiled takes memory for as many before it looks whether they are there.

use serde_json::Value;

use crate::{invalid, Outcome};

fn check_sizes(first: [u8; 4], map_bytes: usize) -> Outcome<()> {
    let trie_bytes = u32::from_le_bytes(first) as usize;
    if trie_bytes <= map_bytes - first.len() {
        return Ok(());
    }
    let there = map_bytes - first.len();
    Err(invalid(format!("its precompiled_charsmap says that its trie has {trie_bytes} bytes; {there} follow")))
}

pub fn check(map: &[u8]) -> Outcome<()> {
    match map.get(..4) {
        Some(first) => check_sizes([first[0], first[1], first[2], first[3]], map.len()),
        None => Err(invalid(format!("its precompiled_charsmap has {} bytes; it begins with a size of 4", map.len()))),
    }
}

/// Every `precompiled_charsmap` of a tokenizer.json, in base64.
pub fn check_all(json: &Value) -> Outcome<()> {
    match json {
        Value::Object(fields) => {
            if let Some(Value::String(map)) = fields.get("precompiled_charsmap") {
                check_base64(map)?;
            }
            fields.values().try_for_each(check_all)
        }
        Value::Array(items) => items.iter().try_for_each(check_all),
        _ => Ok(()),
    }
}

fn check_base64(map: &str) -> Outcome<()> {
    let text = map.trim_end_matches('=').as_bytes();
    let bytes = text.len() / 4 * 3 + (text.len() % 4 * 3) / 4;
    let mut bits: u64 = 0;
    for &c in text.iter().take(6) {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Ok(()), // not base64: the library says so
        };
        bits = bits << 6 | u64::from(six);
    }
    if bytes < 4 {
        return check(&vec![0; bytes]);
    }
    check_sizes(((bits >> 4) as u32).to_be_bytes(), bytes)
}
