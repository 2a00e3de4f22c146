//! A SentencePiece `tokenizer.model` as a pipeline. The file is a protobuf message; the few fields that matter are read here
//! (sentencepiece_model.proto; numbers below are its field numbers), each length checked.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::normalizers::{Precompiled, Prepend, Replace, Sequence, Strip};
use tokenizers::{AddedToken, AddedVocabulary, NormalizerWrapper};

use crate::around::{self, spelled_in, LLAMA};
use crate::charsmap;
use crate::cuts::{self, Spaces};
use crate::decode_table::{fallback_byte, Rules};
use crate::guard::is_control;
use crate::length_bound;
use crate::sentencepiece_bpe::{Piece, SentencePieceBpe};
use crate::tokenizer::{Limits, Model, Parts, Tokenizer};
use crate::{invalid, Outcome};

const SPACE_MARK: &str = "\u{2581}";

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte,
}

struct Spelled {
    text: String,
    score: f32,
    kind: Kind,
}

#[derive(Default)]
struct File {
    pieces: Vec<Spelled>,
    model_type: u64, // 1 unigram (the default), 2 BPE
    byte_fallback: bool,
    suffix_spaces: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
    charsmap: Vec<u8>,
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
    Fixed64,
}

/// The fields of one protobuf message, in order.
struct Fields<'a> {
    rest: &'a [u8],
}

fn truncated() -> crate::Failure {
    invalid("it is not a SentencePiece model: it ends inside a field")
}

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Outcome<&'a [u8]> {
        if bytes > self.rest.len() {
            return Err(truncated());
        }
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Outcome<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(invalid("it is not a SentencePiece model: a number has more than ten bytes"))
    }

    fn next(&mut self) -> Outcome<Option<(u64, Field<'a>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let bytes = usize::try_from(self.varint()?).map_err(|_| truncated())?;
                Field::Bytes(self.take(bytes)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            other => return Err(invalid(format!("it is not a SentencePiece model: wire type {other}"))),
        };
        Ok(Some((key >> 3, field)))
    }
}

fn read_piece(bytes: &[u8], id: usize) -> Outcome<Spelled> {
    let mut piece = Spelled { text: String::new(), score: 0.0, kind: Kind::Normal };
    let mut fields = Fields { rest: bytes };
    while let Some(field) = fields.next()? {
        match field {
            (1, Field::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|_| invalid(format!("its piece {id} is not UTF-8")))?;
            }
            (2, Field::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
            (3, Field::Number(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    6 => Kind::Byte,
                    _ => return Err(invalid(format!("its piece {id} has type {kind}, which is not supported"))),
                }
            }
            _ => {}
        }
    }
    Ok(piece)
}

fn read(bytes: &[u8]) -> Outcome<File> {
    let mut file = File {
        model_type: 1,
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
        escape_whitespaces: true,
        ..File::default()
    };
    let mut fields = Fields { rest: bytes };
    while let Some(field) = fields.next()? {
        match field {
            (1, Field::Bytes(piece)) => file.pieces.push(read_piece(piece, file.pieces.len())?),
            (2, Field::Bytes(trainer)) => {
                let mut fields = Fields { rest: trainer };
                while let Some((number, field)) = fields.next()? {
                    match (number, field) {
                        (3, Field::Number(n)) => file.model_type = n,
                        (24, Field::Number(n)) => file.suffix_spaces = n != 0,
                        (35, Field::Number(n)) => file.byte_fallback = n != 0,
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                let mut fields = Fields { rest: normalizer };
                while let Some((number, field)) = fields.next()? {
                    match (number, field) {
                        (2, Field::Bytes(map)) => file.charsmap = map.to_vec(),
                        (3, Field::Number(n)) => file.add_dummy_prefix = n != 0,
                        (4, Field::Number(n)) => file.remove_extra_whitespaces = n != 0,
                        (5, Field::Number(n)) => file.escape_whitespaces = n != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    check(&file)?;
    Ok(file)
}

fn check(file: &File) -> Outcome<()> {
    let unknown = file.pieces.iter().filter(|piece| piece.kind == Kind::Unknown).count();
    if unknown != 1 {
        return Err(invalid(format!("it is not a SentencePiece model: it has {unknown} unknown pieces and needs one")));
    }
    if !file.escape_whitespaces || file.suffix_spaces {
        return Err(invalid("its escape_whitespaces = false or treat_whitespace_as_suffix = true is not supported"));
    }
    let mut seen = HashSet::new();
    match file.pieces.iter().find(|piece| piece.text.is_empty() || !seen.insert(piece.text.as_str())) {
        Some(twice) => Err(invalid(format!("its piece \"{}\" is empty or comes twice", twice.text))),
        None => Ok(()),
    }
}

fn byte_ids(file: &File) -> Outcome<Option<Vec<u32>>> {
    if !file.byte_fallback {
        return Ok(None);
    }
    let mut ids = vec![None; 256];
    for (id, piece) in file.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::Byte) {
        let byte = fallback_byte(&piece.text).ok_or_else(|| invalid(format!("its byte piece {id} is \"{}\"", piece.text)))?;
        ids[byte as usize] = Some(id as u32);
    }
    ids.into_iter()
        .collect::<Option<Vec<u32>>>()
        .map(Some)
        .ok_or_else(|| invalid("it has byte_fallback but not all 256 byte pieces"))
}

/// The library's finds every piece. Here it is given controls with a space, which no text has any more when a model is asked, and bytes,
/// which it looks up by their spelling, with a score below that of any way to spell a text.
fn unigram_of(file: &File, unknown: usize) -> Outcome<Unigram> {
    let entry = |piece: &Spelled| match piece.kind {
        Kind::Control | Kind::Unknown => (format!(" {}", piece.text), 0.0),
        Kind::Byte => (piece.text.clone(), -1e30),
        _ => (piece.text.clone(), f64::from(piece.score)),
    };
    let made = Unigram::from(file.pieces.iter().map(entry).collect(), Some(unknown), file.byte_fallback);
    let mut model = made.map_err(|e| invalid(format!("its vocabulary is wrong: {e}")))?;
    // That of an unknown character is told from this one.
    let scores = file.pieces.iter().filter(|piece| piece.kind == Kind::Normal).map(|piece| f64::from(piece.score));
    model.min_score = scores.reduce(f64::min).unwrap_or(0.0);
    Ok(model)
}

fn model_of(file: &File) -> Outcome<Model> {
    let unknown = file.pieces.iter().position(|piece| piece.kind == Kind::Unknown).unwrap_or(0);
    let mut user_defined: Vec<String> =
        file.pieces.iter().filter(|piece| piece.kind == Kind::UserDefined).map(|piece| piece.text.clone()).collect();
    user_defined.sort_by_key(|text| std::cmp::Reverse(text.len()));
    match file.model_type {
        1 => {
            if let Some(text) = user_defined.first() {
                return Err(invalid(format!(
                    "it is a unigram model with the user-defined piece \"{text}\", which is not supported"
                )));
            }
            Ok(Model::Unigram(Box::new(unigram_of(file, unknown)?)))
        }
        2 => {
            let entry = |(id, piece): (usize, &Spelled)| {
                let joins = piece.kind == Kind::Normal;
                (piece.text.clone(), Piece { id: id as u32, score: piece.score, joins })
            };
            Ok(Model::SentencePieceBpe(SentencePieceBpe {
                pieces: file.pieces.iter().enumerate().map(entry).collect(),
                spellings: file.pieces.iter().map(|piece| piece.text.clone()).collect(),
                unknown: unknown as u32,
                bytes: byte_ids(file)?,
                user_defined,
            }))
        }
        other => Err(invalid(format!("its model_type is {other}; supported are 1 (unigram) and 2 (BPE)"))),
    }
}

fn normalizer_of(file: &File, mark_each_part: bool) -> Outcome<NormalizerWrapper> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    let wrong = |e: tokenizers::Error| invalid(format!("its normalizer is wrong: {e}"));
    if !file.charsmap.is_empty() {
        charsmap::check(&file.charsmap)?;
        let map = Precompiled::from(&file.charsmap).map_err(|e| invalid(format!("its precompiled_charsmap is wrong: {e}")))?;
        steps.push(map.into());
    }
    if file.remove_extra_whitespaces {
        steps.push(Strip::new(true, true).into());
        let several = tokenizers::normalizers::replace::ReplacePattern::Regex(" {2,}".into());
        steps.push(Replace::new(several, " ").map_err(wrong)?.into());
    }
    if file.add_dummy_prefix && mark_each_part {
        steps.push(Prepend::new(SPACE_MARK.into()).into());
    }
    steps.push(Replace::new(" ", SPACE_MARK).map_err(wrong)?.into());
    Ok(Sequence::new(steps).into())
}

/// The tokens of tokenizer_config.json's added_tokens_decoder, by id.
fn configured_tokens(config: &Value) -> Outcome<Vec<(u32, AddedToken)>> {
    let mut tokens: Vec<(u32, AddedToken)> = Vec::new();
    for (id, entry) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let number =
            id.parse().map_err(|_| invalid(format!("tokenizer_config.json: added_tokens_decoder has the id \"{id}\"")))?;
        let token: AddedToken = serde_json::from_value(entry.clone())
            .map_err(|e| invalid(format!("tokenizer_config.json: added_tokens_decoder[{id}]: {e}")))?;
        tokens.push((number, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

/// SentencePiece's own decoder and training use it, its encoder does not find it.
fn is_no_text(piece: &Spelled) -> bool {
    matches!(piece.kind, Kind::Control | Kind::Unknown | Kind::Byte)
}

/// What the configuration calls special otherwise than in its added_tokens_decoder.
fn named_special(config: &Value) -> HashSet<&str> {
    let roles = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let others = config.get("additional_special_tokens").and_then(Value::as_array).into_iter().flatten();
    roles.into_iter().filter_map(|role| config.get(role)).chain(others).filter_map(spelled_in).collect()
}

/// As Hugging Face's converter has it for all that are user-defined; here only where a message could forge a role by it.
fn is_role(piece: &Spelled) -> bool {
    piece.kind == Kind::UserDefined && is_control(&AddedToken::from(piece.text.clone(), false))
}

fn ids_of(file: &File) -> HashMap<String, u32> {
    (0u32..).zip(&file.pieces).map(|(id, piece)| (piece.text.clone(), id)).collect()
}

/// Control and unknown pieces are special, and those that the configuration calls so; roles are added tokens. Tokens of the configuration
/// come after the pieces, without a gap.
fn added_tokens(file: &File, config: &Value, normalizer: &NormalizerWrapper) -> Outcome<AddedVocabulary> {
    let named = named_special(config);
    let is_special = |piece: &Spelled| matches!(piece.kind, Kind::Control | Kind::Unknown) || named.contains(piece.text.as_str());
    let found = file.pieces.iter().filter(|piece| is_special(piece) || is_role(piece));
    let mut tokens: Vec<AddedToken> =
        found.map(|piece| AddedToken::from(piece.text.clone(), is_special(piece)).normalized(false)).collect();
    let mut next = file.pieces.len() as u32;
    for (id, token) in configured_tokens(config)? {
        match file.pieces.get(id as usize) {
            Some(piece) if piece.text == token.content => tokens.retain(|other| other.content != token.content),
            None if id == next => next += 1,
            _ => {
                return Err(invalid(format!(
                    "tokenizer_config.json: token \"{}\" has id {id}; the next free one is {next}",
                    token.content
                )))
            }
        }
        let special = token.special || named.contains(token.content.as_str());
        tokens.push(token.special(special));
    }
    let vocabulary = WordLevel::builder().vocab(ids_of(file)).build().map_err(|e| invalid(e.to_string()))?;
    let mut added = AddedVocabulary::new();
    added.add_tokens(&tokens, &vocabulary, Some(normalizer));
    Ok(added)
}

pub fn open(model: &[u8], config: &[u8]) -> Outcome<Tokenizer> {
    let config = around::parse_config(config)?;
    let file = read(model)?;
    // Hugging Face's "legacy" (its default): each part between special tokens gets the space mark that a text of its own would.
    let legacy = config.get("legacy").and_then(Value::as_bool).unwrap_or(true);
    let model = model_of(&file)?;
    let normalizer = normalizer_of(&file, legacy)?;
    let added = added_tokens(&file, &config, &normalizer)?;
    let mut ids = ids_of(&file);
    ids.extend(added.get_vocab().iter().map(|(token, id)| (token.clone(), *id)));
    let rules = Rules {
        byte_level: false,
        replace: vec![(SPACE_MARK.into(), " ".into())],
        byte_fallback: file.byte_fallback,
        strip_leading_space: file.add_dummy_prefix,
    };
    let id_of = |token: &str| file.pieces.iter().position(|piece| piece.text == token).map(|id| id as u32);
    let parts = Parts {
        normalizer: Some(normalizer),
        pre_tokenizer: None,
        post_processor: around::of_class(&LLAMA, &config, id_of)?,
        added,
        mark_start: file.add_dummy_prefix && !legacy,
        unknown: file.pieces.iter().position(|piece| piece.kind == Kind::Unknown).map(|id| id as u32),
        controls: (0u32..).zip(&file.pieces).filter(|(_, piece)| is_no_text(piece)).map(|(id, _)| id).collect(),
        model,
    };
    let spells_only_spaces = file.charsmap.is_empty() && !file.remove_extra_whitespaces && file.model_type == 2;
    let keeps_every_byte = spells_only_spaces && file.byte_fallback;
    let spellings = file.pieces.iter().map(|piece| piece.text.as_str());
    let bound = if keeps_every_byte { length_bound::of_pieces(spellings.clone(), &parts) } else { None };
    let spaces = Spaces { spelled: true, marked_start: file.add_dummy_prefix, composed: false };
    let cuts = if spells_only_spaces { cuts::of_spellings(spellings, spaces.as_spelled(), &parts, spaces) } else { None };
    Tokenizer::new(parts, ids, rules, Limits { bound, cuts })
}
