//! Bounds on what a tokenizer.json makes of a text, told before any is read: its steps may multiply each other. And what the library
//! takes for granted of what is put around a text.

use serde_json::Value;

use crate::length_bound::{kind_of, steps};
use crate::{invalid, Outcome};

/// Generous: a published normalizer is a handful of replacements of a space.
const MAX_GROWTH: usize = 1 << 16;
/// What published templates put around a text is one or two tokens.
const MAX_AROUND: usize = 256;

/// Bytes that a step may make of one, where repeating it makes more. Not looked at: Unicode's forms, which change what they made no
/// further, and the replacements of a Precompiled map, which its file bounds.
fn growth_of(step: &Value) -> usize {
    match kind_of(step) {
        "Replace" => {
            let length = |pointer| step.pointer(pointer).and_then(Value::as_str).map_or(0, str::len);
            // A pattern may match nothing, between any two characters.
            let matched = length("/pattern/String");
            if matched == 0 {
                length("/content") + 1
            } else {
                length("/content").div_ceil(matched).max(1)
            }
        }
        "ByteLevel" => 2,
        _ => 1,
    }
}

fn check_growth(json: &Value) -> Outcome<()> {
    let normalizers = steps(&json["normalizer"], "normalizers");
    let pre_tokenizers = steps(&json["pre_tokenizer"], "pretokenizers");
    let growth = normalizers.into_iter().chain(pre_tokenizers).map(growth_of).fold(1, usize::saturating_mul);
    if growth > MAX_GROWTH {
        return Err(invalid(format!("its normalizer may make {growth} bytes of one; {MAX_GROWTH} is the limit")));
    }
    Ok(())
}

/// Of all processors, which follow each other: pieces around a text, and the text itself once.
fn check_around(post_processor: &Value) -> Outcome<()> {
    let (mut pieces, mut texts) = (0, 0);
    for single in steps(post_processor, "processors").into_iter().filter_map(|step| step.get("single")?.as_array()) {
        pieces += single.len();
        texts = texts.max(single.iter().filter(|piece| piece.get("Sequence").is_some()).count());
    }
    if texts > 1 || pieces > MAX_AROUND {
        return Err(invalid(format!(
            "its post-processor puts {texts} copies of a text into {pieces} pieces; 1 copy and {MAX_AROUND} pieces are the limit"
        )));
    }
    Ok(())
}

fn check_special_tokens(post_processor: &Value) -> Outcome<()> {
    for step in steps(post_processor, "processors") {
        let known = step.get("special_tokens");
        let pieces = step.get("single").and_then(Value::as_array).into_iter().flatten();
        for id in pieces.filter_map(|piece| piece.pointer("/SpecialToken/id")?.as_str()) {
            if known.and_then(|known| known.get(id)).is_none() {
                return Err(invalid(format!(
                    "its post-processor puts the special token \"{id}\" around a text; its special_tokens lack it"
                )));
            }
        }
    }
    Ok(())
}

pub fn check(json: &Value) -> Outcome<()> {
    check_growth(json)?;
    check_special_tokens(&json["post_processor"])?;
    check_around(&json["post_processor"])
}
