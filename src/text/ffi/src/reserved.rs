//! Ids that a text may not become. The vocabulary of a model has its control tokens and its bytes beside its words, and most kinds of model
//! take what they find there: Unigram any piece, WordPiece and WordLevel any word, BPE what merges or `ignore_merges` give, SentencePiece's
//! what is user-defined. So it is of no use that added tokens are not looked for, or are broken, before a model is asked.
//!
//! This is the one place where a model is asked, and no reserved id leaves it. One that the model gave is taken back: what it stood for is
//! read again as its first character and the rest. A character that has no other token is its bytes, or unknown. The alphabet of a
//! byte-level model is not reserved, though a file may say that one of it is special ("!" to fill up batches): it is how text is spelled.

use std::collections::{HashMap, HashSet};

use tokenizers::Token;

use crate::decode_table::{byte_level_alphabet, fallback_byte, Rules};
use crate::guard::is_control;
use crate::tokenizer::{Model, Parts};

/// How much of a text is text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reading {
    Open,   // special tokens have been found in it: controls and bytes are reserved
    AsText, // and special tokens
    InChat, // and what is one by its spelling
}

pub struct Reserved {
    from: Vec<Option<Reading>>,     // by id: the first reading that reserves it
    spelled: HashMap<u32, Vec<u8>>, // those that a model also gives for what has no token: reserved where they are spelled out
    bytes: Option<Vec<u32>>,
    unknown: Option<u32>,
}

/// What is yet to be read, and what has been.
enum Part<'a> {
    Text(&'a str),
    Token(Token),
}

fn ids_of_bytes(ids: &HashMap<String, u32>) -> HashMap<u8, u32> {
    ids.iter().filter_map(|(spelling, id)| Some((fallback_byte(spelling)?, *id))).collect()
}

impl Reserved {
    pub fn new(parts: &Parts, ids: &HashMap<String, u32>, rules: &Rules) -> Reserved {
        let of_bytes = if rules.byte_fallback { ids_of_bytes(ids) } else { HashMap::new() };
        let mut reserved = Reserved {
            from: Vec::new(),
            spelled: HashMap::new(),
            bytes: (0..=255u8).map(|byte| of_bytes.get(&byte).copied()).collect(),
            unknown: parts.unknown,
        };
        for (id, token) in parts.added.get_added_tokens_decoder().iter().filter(|(_, token)| is_control(token)) {
            reserved.reserve(*id, if token.special { Reading::AsText } else { Reading::InChat });
        }
        of_bytes.values().chain(&parts.controls).for_each(|id| reserved.reserve(*id, Reading::Open));
        if rules.byte_level {
            byte_level_alphabet().keys().filter_map(|c| ids.get(&c.to_string())).for_each(|id| reserved.release(*id));
        }
        let given_for_others: HashSet<u32> = of_bytes.into_values().chain(parts.unknown).collect();
        let spelled = ids.iter().filter(|(_, id)| given_for_others.contains(*id));
        reserved.spelled.extend(spelled.map(|(spelling, id)| (*id, spelling.clone().into_bytes())));
        reserved
    }

    fn reserve(&mut self, id: u32, reading: Reading) {
        let at = id as usize;
        if at >= self.from.len() {
            self.from.resize(at + 1, None);
        }
        self.from[at] = Some(self.from[at].map_or(reading, |other: Reading| other.min(reading)));
    }

    fn release(&mut self, id: u32) {
        if let Some(reserved) = self.from.get_mut(id as usize) {
            *reserved = None;
        }
    }

    fn has(&self, token: &Token, text: &str, reading: Reading) -> bool {
        let reserved = matches!(self.from.get(token.id as usize), Some(Some(from)) if *from <= reading);
        let spelled_out = |spelling: &Vec<u8>| text.as_bytes().get(token.offsets.0..token.offsets.1) == Some(spelling);
        reserved && self.spelled.get(&token.id).map_or(true, spelled_out)
    }

    /// What the model makes of a text.
    pub fn tokenize(&self, model: &Model, text: &str, reading: Reading) -> tokenizers::Result<Vec<Token>> {
        let tokens = model.tokenize(text)?;
        if !tokens.iter().any(|token| self.has(token, text, reading)) {
            return Ok(tokens);
        }
        let mut read = Vec::with_capacity(tokens.len());
        let mut parts = Vec::new(); // the next one last
        self.take_back(tokens, text, reading, &mut parts)?;
        while let Some(part) = parts.pop() {
            match part {
                Part::Token(token) => read.push(token),
                Part::Text(text) => self.take_back(model.tokenize(text)?, text, reading, &mut parts)?,
            }
        }
        Ok(read)
    }

    fn take_back<'a>(
        &self,
        tokens: Vec<Token>,
        text: &'a str,
        reading: Reading,
        parts: &mut Vec<Part<'a>>,
    ) -> tokenizers::Result<()> {
        for token in tokens.into_iter().rev() {
            if !self.has(&token, text, reading) {
                parts.push(Part::Token(token));
                continue;
            }
            let (from, to) = token.offsets;
            let found = text.get(from..to).filter(|found| !found.is_empty());
            match found.and_then(|found| Some((found, found.chars().next()?.len_utf8()))) {
                Some((found, first)) if first < found.len() => {
                    parts.push(Part::Text(&found[first..]));
                    parts.push(Part::Text(&found[..first]));
                }
                // One character; or bytes that a merge joined to something.
                _ => self.spell(text.as_bytes().get(from..to).unwrap_or(&[]), parts)?,
            }
        }
        Ok(())
    }

    fn spell(&self, found: &[u8], parts: &mut Vec<Part>) -> tokenizers::Result<()> {
        let token = |id: u32| Part::Token(Token::new(id, String::new(), (0, 0)));
        match (&self.bytes, self.unknown) {
            (Some(bytes), _) => parts.extend(found.iter().rev().map(|byte| token(bytes[*byte as usize]))),
            (None, Some(unknown)) => parts.push(token(unknown)),
            (None, None) => {
                let spelled = String::from_utf8_lossy(found);
                return Err(format!("only a special token spells \"{}\"", spelled.escape_debug()).into());
            }
        }
        Ok(())
    }
}
