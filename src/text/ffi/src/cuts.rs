//! Where a long text may be cut so that its parts, tokenised one by one, give the ids of the whole. A tokenizer needs some 120 bytes of
//! memory for each byte of what it is given at once (offsets, spellings, a string for each word), so a text of megabytes is given in parts.
//!
//! One kind of place will do: before a single space between two ASCII letters. Sound or absent: a tokenizer is cut only where each of its
//! steps is known to treat both sides there as if the other were not.
//! - Added tokens: none can lie over the cut, or takes the space along to its left.
//! - Normaliser: changes no ASCII text, or spells spaces as marks and puts a mark at the start (then the part's own space is left out).
//! - Pre-tokenizer: no pattern matches a letter and a space after it, none looks behind, and what adds a space or a mark to its start
//!   knows the one that a part begins with.
//! - Model: BPE whose vocabulary has no piece with a letter and a space after it, and no id for two pieces, so that no merge joins the
//!   two sides.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::length_bound::{kind_of, steps};
use crate::tokenizer::Parts;

const SPACE_MARK: char = '\u{2581}';
/// How byte-level tokenizers spell a space.
const SPACE_BYTE: char = '\u{120}';

/// What the published families split by: GPT-2's pattern is ByteLevel's own.
const WORD_PATTERNS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const LAST_SPACES: &str = r"\s+$";

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cuts {
    /// The normaliser puts a mark before every part, which stands for the space that the part began with.
    space_left_out: bool,
}

impl Cuts {
    /// `text` in parts of about `part_bytes`, more where no place to cut comes.
    pub fn parts(self, text: &str, part_bytes: usize) -> impl Iterator<Item = &str> {
        let mut rest = Some(text);
        std::iter::from_fn(move || {
            let whole = rest?;
            let at = cut_after(whole, part_bytes);
            rest = at.map(|at| &whole[at + usize::from(self.space_left_out)..]);
            Some(&whole[..at.unwrap_or(whole.len())])
        })
    }
}

/// The first place to cut at `least` or later. A place between ASCII characters is one between characters.
fn cut_after(text: &str, least: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let is_cut = |at: &usize| bytes[*at] == b' ' && bytes[*at - 1].is_ascii_alphabetic() && bytes[*at + 1].is_ascii_alphabetic();
    (least.max(1)..bytes.len().saturating_sub(1)).find(is_cut)
}

fn has_space_after_letter(spelling: &str, is_space: impl Fn(char) -> bool) -> bool {
    let mut after_letter = false;
    spelling.chars().any(|c| {
        let found = after_letter && is_space(c);
        after_letter = c.is_ascii_alphabetic();
        found
    })
}

/// What a normaliser does to spaces.
#[derive(Clone, Copy)]
pub struct Spaces {
    pub spelled: bool,      // each as a mark
    pub marked_start: bool, // and there is one before every part
    pub composed: bool,     // other characters may become spaces and letters, and be taken apart
}

impl Spaces {
    pub fn as_spelled(self) -> char {
        if self.spelled {
            SPACE_MARK
        } else {
            ' '
        }
    }
}

/// None where a step is not known.
fn spaces_of(normalizer: &Value) -> Option<Spaces> {
    let mark = SPACE_MARK.to_string();
    let mut spaces = Spaces { spelled: false, marked_start: false, composed: false };
    for step in steps(normalizer, "normalizers") {
        let text = |pointer| step.pointer(pointer).and_then(Value::as_str);
        match kind_of(step) {
            "NFC" | "NFD" | "NFKC" | "NFKD" => spaces.composed = true,
            "Prepend" if !spaces.marked_start && text("/prepend")? == mark => spaces.marked_start = true,
            "Replace" if text("/pattern/String")? == " " && text("/content")? == mark => spaces.spelled = true,
            _ => return None,
        }
    }
    (spaces.spelled || !spaces.marked_start).then_some(spaces)
}

/// `\s?` and one or more of a class that has no space: no class of other classes, no escapes.
fn is_one_class(pattern: &str) -> bool {
    let class = pattern.strip_prefix(r"\s?").unwrap_or(pattern);
    let class = class.strip_suffix('+').unwrap_or(class);
    let Some(class) = class.strip_prefix('[').and_then(|class| class.strip_suffix(']')) else { return false };
    let chars: Vec<char> = class.chars().collect();
    let plain = !class.is_empty() && !class.starts_with('^') && !chars.iter().any(|c| matches!(c, '[' | ']' | '\\' | '&' | ' '));
    plain && !chars.windows(3).any(|three| three[1] == '-' && (three[0]..=three[2]).contains(&' '))
}

/// A cut as the model sees it.
struct Seen {
    space: char, // as it is spelled there
    apart: bool, // its two sides are never given at once
}

fn see_split(seen: &mut Seen, step: &Value) -> Option<()> {
    let is = |key: &str, value: Value| step.get(key) == Some(&value);
    let pattern = step.pointer("/pattern/Regex").and_then(Value::as_str)?;
    let is_of_words = WORD_PATTERNS.contains(&pattern);
    let is_known = is_of_words || pattern == LAST_SPACES || is_one_class(pattern);
    seen.apart |= is_of_words && seen.space != SPACE_BYTE; // which is a letter to a pattern
    (is_known && is("behavior", "Isolated".into()) && is("invert", false.into())).then_some(())
}

/// None where a step is not known. One that puts a space or a mark before what does not begin with it, or spells bytes, must come while
/// the space is one to it: it would treat a part that begins with another spelling as a text of its own.
fn see_step(seen: &mut Seen, step: &Value) -> Option<()> {
    let is_set = |key: &str| step.get(key) == Some(&true.into());
    match kind_of(step) {
        "Digits" => {}
        "Split" => see_split(seen, step)?,
        "ByteLevel" if seen.space == ' ' => *seen = Seen { space: SPACE_BYTE, apart: seen.apart || is_set("use_regex") },
        "Metaspace" if seen.space != SPACE_BYTE && step.get("replacement")?.as_str()? == SPACE_MARK.encode_utf8(&mut [0; 4]) => {
            *seen = Seen { space: SPACE_MARK, apart: seen.apart || is_set("split") }
        }
        _ => return None,
    }
    Some(())
}

fn see(pre_tokenizer: &Value, spaces: Spaces) -> Option<Seen> {
    let mut seen = Seen { space: spaces.as_spelled(), apart: false };
    steps(pre_tokenizer, "pretokenizers").into_iter().try_for_each(|step| see_step(&mut seen, step))?;
    Some(seen)
}

/// Added tokens are looked for before the normaliser, or after it as what it makes of them.
fn added_allow(parts: &Parts, spaces: Spaces) -> bool {
    let is_space = |c: char| c == ' ' || c == spaces.as_spelled();
    parts.added.get_added_tokens_decoder().values().all(|token| {
        let (first, last) = (token.content.chars().next(), token.content.chars().next_back());
        let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphabetic());
        let is_other_then = spaces.composed && token.normalized && !token.content.is_ascii();
        let takes_space = token.rstrip && is_letter(last);
        let begins_part = spaces.marked_start && (is_letter(first) || first.is_some_and(is_space));
        let looks_behind = token.single_word && first.is_some_and(is_space);
        !has_space_after_letter(&token.content, is_space) && !is_other_then && !takes_space && !begins_part && !looks_behind
    })
}

/// Of the spellings of a BPE model whose other steps are known, `space` among them as the model sees it. It must have a spelling of its own:
/// unknown neighbours may be one token.
pub fn of_spellings<'a>(
    mut spellings: impl Iterator<Item = &'a str> + Clone,
    space: char,
    parts: &Parts,
    spaces: Spaces,
) -> Option<Cuts> {
    let is_space = |c: char| c == space;
    let has_space = spellings.clone().any(|spelling| spelling.chars().eq([space]));
    let apart = has_space && !spellings.any(|spelling| has_space_after_letter(spelling, is_space));
    (apart && added_allow(parts, spaces)).then_some(Cuts { space_left_out: spaces.marked_start })
}

/// Merges go by ids: of two spellings with one id each joins whatever the other does.
fn has_an_id_each(vocab: &Map<String, Value>) -> bool {
    let mut ids = HashSet::with_capacity(vocab.len());
    vocab.values().all(|id| id.as_u64().is_some_and(|id| ids.insert(id)))
}

/// Of a tokenizer.json and the parts that it became.
pub fn of_json(json: &Value, parts: &Parts) -> Option<Cuts> {
    let model = json.get("model")?;
    let absent = |key: &str| model.get(key).map_or(true, |value| value.is_null() || value == "");
    let is_bpe =
        kind_of(model) == "BPE" && ["dropout", "continuing_subword_prefix", "end_of_word_suffix"].into_iter().all(absent);
    let spaces = spaces_of(&json["normalizer"])?;
    let seen = see(&json["pre_tokenizer"], spaces)?;
    // What it is given at once is then looked up before merges are asked.
    let looks_up_words = model.get("ignore_merges") == Some(&true.into());
    let vocab = model.get("vocab")?.as_object()?;
    let known = is_bpe && (seen.apart || !looks_up_words) && has_an_id_each(vocab);
    known.then(|| of_spellings(vocab.keys().map(String::as_str), seen.space, parts, spaces))?
}
