//! Text that must stay text inside a rendered chat: no message may forge a special token.
//!
//! `guard` goes over a message before the template sees it. A special token that is spelled out gets a mark after its first character,
//! taken out again once special tokens have been looked for: so nothing else changes. (A model that has them in its vocabulary does not give
//! them for a text either: see reserved.rs.) Where a tokenizer also finds special tokens in
//! what its normalizer makes of a text (`"normalized": true`), or has one of a single character, a mark inside does not do. Then the
//! message is read as the tokenizer reads it, and marks go around each special token that is found; `encode` finds them again in the
//! chat and takes what lies between as text. A special token that comes about only where a message and the template meet is not seen.
//!
//! Some files do not mark the tokens that open a role as special (DeepSeek-R1-Distill-Qwen: `<｜User｜>`). Here such a token counts as
//! special by how it is spelled.

use std::collections::HashMap;
use std::ops::Range;

use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, AddedVocabulary, NormalizerWrapper, OffsetReferential, OffsetType};

use crate::tokenizer::Parts;

/// Noncharacters: no interchange of text may contain them (Unicode 23.7).
pub const BREAK: char = '\u{fdd0}';
const OPEN: char = '\u{fdd1}';
const CLOSE: char = '\u{fdd2}';

pub fn is_mark(c: char) -> bool {
    matches!(c, BREAK | OPEN | CLOSE)
}

pub struct Guard {
    spelled: HashMap<char, Vec<String>>, // special tokens by first character; those of one character cannot be broken
    reads: bool,                         // marks inside do not do for some
}

/// A special token that a tokenizer finds.
pub struct Found {
    pub id: u32,
    pub at: Range<usize>, // bytes of the text
}

pub fn is_control(token: &AddedToken) -> bool {
    let between = |open, close| token.content.starts_with(open) && token.content.ends_with(close);
    token.special || between("<|", "|>") || between("<\u{ff5c}", "\u{ff5c}>")
}

/// With the tokens that a file leaves unmarked among the special ones.
pub fn with_unmarked(added: &AddedVocabulary, normalizer: Option<&NormalizerWrapper>) -> AddedVocabulary {
    let mut all = added.clone();
    let unmarked = added.get_added_tokens_decoder().values().filter(|token| is_control(token) && !token.special);
    let unmarked: Vec<AddedToken> = unmarked.map(|token| token.clone().special(true)).collect();
    if !unmarked.is_empty() {
        all.add_tokens(&unmarked, &BPE::default(), normalizer); // all have their ids: the model is not asked
    }
    all
}

pub fn find(added: &AddedVocabulary, normalizer: Option<&NormalizerWrapper>, text: &str) -> Vec<Found> {
    let pieces = added.extract_and_normalize(normalizer, text);
    let special = |id: u32| added.get_added_tokens_decoder().get(&id).is_some_and(is_control);
    let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let tokens = splits.iter().filter_map(|(_, at, tokens)| Some((at, tokens.as_ref()?.first()?.id)));
    let mut found: Vec<Found> = Vec::new();
    for (at, id) in tokens.filter(|(_, id)| special(*id)) {
        // A token that takes the spaces after it along may have taken what follows, if that is one of spaces.
        let start = found.last().map_or(at.0, |last| last.at.end.max(at.0));
        if start < at.1 {
            found.push(Found { id, at: start..at.1 });
        }
    }
    found
}

/// Without the marks around what must be text, and where that is.
pub fn take_marks(text: &str) -> (String, Vec<Range<usize>>) {
    let (mut plain, mut marked, mut opened) = (String::with_capacity(text.len()), Vec::new(), None);
    for c in text.chars() {
        match c {
            OPEN => opened = opened.or(Some(plain.len())),
            CLOSE => marked.extend(opened.take().map(|from| from..plain.len())),
            c => plain.push(c),
        }
    }
    marked.extend(opened.map(|from| from..plain.len())); // a template cut it
    (plain, marked)
}

/// The spaces that a token takes along are the text's around it, which another token may take.
fn without_spaces(text: &str, at: &Range<usize>) -> Range<usize> {
    let found = &text[at.clone()];
    let inner = found.trim();
    if inner.is_empty() {
        return at.clone();
    }
    let from = at.start + found.len() - found.trim_start().len();
    from..from + inner.len()
}

/// Of tokens in order, of which none begins with another: only the last that is not behind the text can be its beginning.
fn begins_with_one_of(text: &str, tokens: &[String]) -> bool {
    let end = tokens.partition_point(|token| token.as_str() <= text);
    end > 0 && text.starts_with(tokens[end - 1].as_str())
}

impl Guard {
    pub fn new(parts: &Parts) -> Guard {
        let mut spelled: HashMap<char, Vec<String>> = HashMap::new();
        let mut reads = false;
        for token in parts.added.get_added_tokens_decoder().values().filter(|token| is_control(token)) {
            let mut chars = token.content.chars();
            let first = chars.next();
            if let (Some(first), Some(_)) = (first, chars.next()) {
                spelled.entry(first).or_default().push(token.content.clone());
                reads |= token.normalized && parts.normalizer.is_some();
            } else {
                reads |= first.is_some();
            }
        }
        for tokens in spelled.values_mut() {
            tokens.sort();
            tokens.dedup_by(|later, kept| later.starts_with(kept.as_str()));
        }
        Guard { spelled, reads }
    }

    /// Whether `guard` may put marks around something.
    pub fn has_marks(&self, text: &str) -> bool {
        self.reads && text.contains(OPEN)
    }

    pub fn guard(&self, parts: &Parts, text: &str) -> String {
        let broken = self.broken(text);
        if self.reads {
            self.marked(parts, &broken)
        } else {
            broken
        }
    }

    /// A mark after the first character of every special token that is spelled out.
    fn broken(&self, text: &str) -> String {
        let mut guarded = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            if self.reads && (c == OPEN || c == CLOSE) {
                continue;
            }
            guarded.push(c);
            if self.spelled.get(&c).is_some_and(|tokens| begins_with_one_of(&text[at..], tokens)) {
                guarded.push(BREAK);
            }
        }
        guarded
    }

    /// `broken`, with marks around the special tokens that are found in it all the same.
    fn marked(&self, parts: &Parts, broken: &str) -> String {
        let (mut marked, mut from) = (String::new(), 0);
        for found in find(&parts.added, parts.normalizer.as_ref(), broken) {
            let at = without_spaces(broken, &found.at);
            marked.push_str(&broken[from..at.start]);
            marked.push(OPEN);
            marked.push_str(&broken[at.clone()]);
            marked.push(CLOSE);
            from = at.end;
        }
        marked.push_str(&broken[from..]);
        marked
    }
}
