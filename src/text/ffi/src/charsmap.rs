//! Checks SentencePiece's precompiled character map before the library reads it. The map begins with the bytes of its trie (u32, little
//! endian), for which spm_precompiled takes memory before it looks whether they are there. Then come the trie, a double array, and the
//! texts that its values point to; spm_precompiled follows both with no look at where they end. So every place that some text leads to is
//! looked at here.

use std::collections::HashSet;

use serde_json::Value;

use crate::{invalid, Failure, Outcome};

fn wrong(what: String) -> Failure {
    invalid(format!("its precompiled_charsmap {what}"))
}

/// A unit of the trie, read as spm_precompiled reads it.
struct Unit(usize);

impl Unit {
    const BYTES: usize = 4;

    fn has_value(&self) -> bool {
        self.0 >> 8 & 1 == 1
    }
    fn value(&self) -> usize {
        self.0 & 0x7fff_ffff
    }
    fn label(&self) -> usize {
        self.0 & (1 << 31 | 0xff)
    }
    fn offset(&self) -> usize {
        (self.0 >> 10) << ((self.0 & (1 << 9)) >> 6)
    }
}

fn unit(trie: &[u8], at: usize) -> Outcome<Unit> {
    match trie.get(at * Unit::BYTES..(at + 1) * Unit::BYTES) {
        Some(bytes) => Ok(Unit(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)),
        None => Err(wrong(format!("has a trie of {} units and leads to unit {at}", trie.len() / Unit::BYTES))),
    }
}

/// Every value that some text leads to. A text's next byte is looked up at `base ^ byte`.
fn check_values(trie: &[u8], is_good: impl Fn(usize) -> Outcome<()>) -> Outcome<()> {
    let root = unit(trie, 0)?.offset();
    let (mut seen, mut next) = (HashSet::from([root]), vec![root]);
    while let Some(base) = next.pop() {
        for byte in 1..=0xff {
            let at = base ^ byte;
            let found = unit(trie, at)?;
            if found.label() != byte {
                continue;
            }
            let child = at ^ found.offset();
            if found.has_value() {
                is_good(unit(trie, child)?.value())?;
            }
            if seen.insert(child) {
                next.push(child);
            }
        }
    }
    Ok(())
}

pub fn check(map: &[u8]) -> Outcome<()> {
    let Some(first) = map.get(..4) else {
        return Err(wrong(format!("has {} bytes; it begins with a size of 4", map.len())));
    };
    let trie_bytes = u32::from_le_bytes([first[0], first[1], first[2], first[3]]) as usize;
    let there = map.len() - first.len();
    if trie_bytes > there {
        return Err(wrong(format!("says that its trie has {trie_bytes} bytes; {there} follow")));
    }
    let (trie, texts) = map[first.len()..].split_at(trie_bytes / Unit::BYTES * Unit::BYTES);
    let texts = std::str::from_utf8(texts)
        .map_err(|e| wrong(format!("has texts that are not UTF-8: byte {} of them is wrong", e.valid_up_to())))?;
    check_values(trie, |value| match texts.is_char_boundary(value) {
        true => Ok(()),
        false => Err(wrong(format!(
            "points to byte {value} of its texts, which have {} bytes: no character begins there",
            texts.len()
        ))),
    })
}

/// Every `precompiled_charsmap` of a tokenizer.json, in base64.
pub fn check_all(json: &Value) -> Outcome<()> {
    match json {
        Value::Object(fields) => {
            if let Some(Value::String(map)) = fields.get("precompiled_charsmap") {
                check(&base64::decode(map).map_err(|e| wrong(format!("is not base64: {e}")))?)?;
            }
            fields.values().try_for_each(check_all)
        }
        Value::Array(items) => items.iter().try_for_each(check_all),
        _ => Ok(()),
    }
}
