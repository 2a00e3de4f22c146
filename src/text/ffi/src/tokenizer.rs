//! One pipeline for both kinds of file: find added tokens, normalise, split, ask the model, add what the template puts around.
//! The steps are those of `tokenizers::Tokenizer::encode`, taken apart because its choice of reading special tokens as text is a
//! setting of the whole tokenizer, and here it is one of each call.

use std::cell::Cell;
use std::collections::HashMap;
use std::iter;
use std::ops::Range;

use tokenizers::tokenizer::Model as _;
use tokenizers::{
    AddedVocabulary, Encoding, NormalizedString, Normalizer as _, NormalizerWrapper, OffsetType, PostProcessor as _,
    PostProcessorWrapper, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, Token,
};

use crate::around;
use crate::charsmap;
use crate::cuts::{self, Cuts};
use crate::decode_table::{DecodeTable, Rules, TokenSpelling};
use crate::guard::{self, Guard, BREAK};
use crate::json_bounds;
use crate::length_bound::{self, LengthBound};
use crate::reserved::{Reading, Reserved};
use crate::sentencepiece_bpe::SentencePieceBpe;
use crate::{invalid, Failure, Outcome, OUT_OF_RANGE};

const SPACE_MARK: &str = "\u{2581}";

pub enum Model {
    Json(Box<tokenizers::Tokenizer>),
    SentencePieceBpe(SentencePieceBpe),
    Unigram(Box<tokenizers::models::unigram::Unigram>),
}

impl Model {
    /// Any piece of its vocabulary, whatever kind: asked by `Reserved` alone.
    pub fn tokenize(&self, text: &str) -> tokenizers::Result<Vec<tokenizers::Token>> {
        match self {
            Model::Json(tokenizer) => tokenizer.get_model().tokenize(text),
            Model::SentencePieceBpe(model) => model.tokenize(text),
            Model::Unigram(model) => model.tokenize(text),
        }
    }
}

/// Everything but the model's own vocabulary.
pub struct Parts {
    pub model: Model,
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    pub post_processor: Option<PostProcessorWrapper>,
    pub added: AddedVocabulary,
    /// A space mark goes before a text that does not start with an added token, and nowhere else.
    pub mark_start: bool,
    /// What the model gives for what it has no token for.
    pub unknown: Option<u32>,
    /// Ids of no text, found as added tokens or not.
    pub controls: Vec<u32>,
}

#[derive(Clone, Copy)]
pub struct Encode {
    pub add_special: bool,
    pub special_as_text: bool,
    pub guarded: bool,
    /// A text of more ids is refused, as early as that is certain.
    pub max_ids: usize,
    /// Where it may be cut, a text is read in parts of about this size.
    pub part_bytes: usize,
    /// The text's start, not a place further in.
    pub starts: bool,
}

impl Encode {
    fn reading(&self) -> Reading {
        match (self.guarded, self.special_as_text) {
            (true, _) => Reading::InChat,
            (false, true) => Reading::AsText,
            (false, false) => Reading::Open,
        }
    }
}

/// What is known of a tokenizer without running it.
pub struct Limits {
    pub bound: Option<LengthBound>,
    pub cuts: Option<Cuts>,
}

pub struct Tokenizer {
    parts: Parts,
    added_as_text: AddedVocabulary,
    added_as_text_in_chat: AddedVocabulary, // those too that are special by their spelling
    ids: HashMap<String, u32>,
    table: DecodeTable,
    limits: Limits,
    template: Vec<Option<i32>>, // what stands around a text's ids; none: the ids themselves
    guard: Guard,
    reserved: Reserved,
}

fn too_long(text: &str, max_ids: usize, why: String) -> Failure {
    Failure { code: OUT_OF_RANGE, message: format!("a text of {} bytes has more than {max_ids} tokens{why}", text.len()) }
}

/// What a post-processor makes of one token that no vocabulary has. It looks at no ids, so this is what it makes of any number of them.
fn template_of(post_processor: Option<&PostProcessorWrapper>) -> Outcome<Vec<Option<i32>>> {
    let Some(post_processor) = post_processor else { return Ok(vec![None]) };
    let text = Encoding::from_tokens(vec![Token::new(u32::MAX, String::new(), (0, 0))], 0);
    let around = post_processor.process(text, None, true).map_err(|e| invalid(format!("its post-processor failed: {e}")))?;
    Ok(around.get_ids().iter().map(|id| (*id != u32::MAX).then_some(*id as i32)).collect())
}

/// The library looks for added tokens as the normalizer makes them, and finds an empty one between any two bytes.
fn check_added(parts: &Parts) -> Outcome<()> {
    let Some(normalizer) = &parts.normalizer else { return Ok(()) };
    for token in parts.added.get_added_tokens_decoder().values().filter(|token| token.normalized) {
        let mut content = NormalizedString::from(token.content.as_str());
        normalizer.normalize(&mut content).map_err(|e| invalid(format!("its normalizer failed: {e}")))?;
        if content.is_empty() {
            return Err(invalid(format!("its added token \"{}\" is empty once normalized", token.content.escape_debug())));
        }
    }
    Ok(())
}

fn unknown_of(model: &serde_json::Value, ids: &HashMap<String, u32>) -> Option<u32> {
    let by_spelling = || ids.get(model.get("unk_token")?.as_str()?).copied();
    let by_id = || u32::try_from(model.get("unk_id")?.as_u64()?).ok();
    by_spelling().or_else(by_id)
}

/// A text that the file has no tokens for, or that takes one of its patterns too far.
fn failed(e: tokenizers::Error) -> Failure {
    invalid(format!("the tokenizer failed: {e}"))
}

impl Tokenizer {
    pub fn from_json(json: &[u8], config: &[u8]) -> Outcome<Tokenizer> {
        let value: serde_json::Value = serde_json::from_slice(json).map_err(|e| invalid(format!("it is not JSON: {e}")))?;
        let rules = Rules::from_decoder(value.get("decoder").unwrap_or(&serde_json::Value::Null))?;
        charsmap::check_all(&value)?;
        json_bounds::check(&value)?;
        let tokenizer: tokenizers::Tokenizer =
            serde_json::from_slice(json).map_err(|e| invalid(format!("it is not a tokenizer: {e}")))?;
        let ids = tokenizer.get_vocab(true);
        let parts = Parts {
            normalizer: tokenizer.get_normalizer().cloned(),
            pre_tokenizer: tokenizer.get_pre_tokenizer().cloned(),
            post_processor: around::of_json(tokenizer.get_post_processor().cloned(), &around::parse_config(config)?, &ids)?,
            added: tokenizer.get_added_vocabulary().clone(),
            mark_start: false,
            unknown: unknown_of(&value["model"], &ids),
            controls: Vec::new(),
            model: Model::Json(Box::new(tokenizer)),
        };
        let limits = Limits { bound: length_bound::of_json(&value, &parts), cuts: cuts::of_json(&value, &parts) };
        Tokenizer::new(parts, ids, rules, limits)
    }

    pub fn new(parts: Parts, ids: HashMap<String, u32>, rules: Rules, limits: Limits) -> Outcome<Tokenizer> {
        check_added(&parts)?;
        let mut added_as_text = parts.added.clone();
        added_as_text.set_encode_special_tokens(true);
        let added_as_text_in_chat = guard::with_unmarked(&added_as_text, parts.normalizer.as_ref());
        // Added tokens last: where one took over an id of the model, decoding spells it as the added token.
        let spelled = |spelling: &String, id: u32, added: bool| TokenSpelling {
            spelling: spelling.clone(),
            id,
            special: parts.added.is_special_token(spelling),
            added,
        };
        let model_tokens = ids.iter().map(|(spelling, id)| spelled(spelling, *id, false));
        let added_tokens = parts.added.get_added_tokens_decoder().iter().map(|(id, token)| spelled(&token.content, *id, true));
        let reserved = Reserved::new(&parts, &ids, &rules);
        let table = DecodeTable::new(rules, model_tokens.chain(added_tokens))?;
        if table.len() == 0 {
            return Err(invalid("its vocabulary is empty"));
        }
        let template = template_of(parts.post_processor.as_ref())?;
        let guard = Guard::new(&parts);
        let made = Tokenizer { parts, added_as_text, added_as_text_in_chat, ids, table, limits, template, guard, reserved };
        made.try_out();
        Ok(made)
    }

    /// Where steps that no check knows of make the library panic, most do for any text: better when the file is opened than at each
    /// request. A text that the tokenizer refuses is as good.
    fn try_out(&self) {
        for text in ["", "a", " Ab  1\r\n", "\u{e9}\u{2581}\u{301} \u{fb01}\u{4e2d}\u{1f600}"] {
            for special_as_text in [false, true] {
                let how = Encode {
                    add_special: true,
                    special_as_text,
                    guarded: false,
                    max_ids: usize::MAX,
                    part_bytes: usize::MAX,
                    starts: true,
                };
                let _ = self.encode(text, how);
                let _ = self.encode(text, Encode { guarded: true, ..how });
            }
        }
    }

    pub fn table(&self) -> &DecodeTable {
        &self.table
    }

    pub fn reads_in_parts(&self) -> bool {
        self.limits.cuts.is_some()
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub fn encode(&self, text: &str, how: Encode) -> Outcome<Vec<i32>> {
        let marks = if how.guarded { BREAK.len_utf8() * text.matches(guard::is_mark).count() } else { 0 };
        let too_short = |bound: &LengthBound| bound.least_tokens(text, marks, how.special_as_text) > how.max_ids;
        if let Some(bound) = self.limits.bound.filter(too_short) {
            return Err(too_long(text, how.max_ids, format!(": none stands for more than {} bytes", bound.max_token_bytes)));
        }
        let mut ids = Vec::new();
        match self.limits.cuts {
            _ if how.guarded && self.guard.has_marks(text) => self.encode_marked(text, how, &mut ids)?,
            Some(cuts) => cuts.parts(text, how.part_bytes).try_for_each(|part| self.encode_part(part, text, how, &mut ids))?,
            None => self.encode_part(text, text, how, &mut ids)?,
        }
        if how.add_special {
            ids = self.with_template(ids);
        }
        if ids.len() > how.max_ids {
            return Err(too_long(text, how.max_ids, String::new()));
        }
        Ok(ids)
    }

    fn with_template(&self, ids: Vec<i32>) -> Vec<i32> {
        if self.template == [None] {
            return ids;
        }
        let fill = |place: &Option<i32>| place.map_or(ids.clone(), |id| vec![id]);
        self.template.iter().flat_map(fill).collect()
    }

    /// Adds the ids of a part of the text.
    fn encode_part(&self, part: &str, text: &str, how: Encode, ids: &mut Vec<i32>) -> Outcome<()> {
        let mut pieces = self.split(part, how).map_err(failed)?;
        self.tokenize(&mut pieces, text, how, how.max_ids.saturating_sub(ids.len()))?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
        // The table was built over every id, so each is below its limit and fits.
        ids.extend(encoding.get_ids().iter().map(|id| *id as i32));
        Ok(())
    }

    /// Added tokens found, and what lies between them normalised and split.
    fn split(&self, part: &str, how: Encode) -> tokenizers::Result<PreTokenizedString> {
        let added = match (how.special_as_text, how.guarded) {
            (true, true) => &self.added_as_text_in_chat,
            (true, false) => &self.added_as_text,
            (false, _) => &self.parts.added,
        };
        let mut pieces = added.extract_and_normalize(self.parts.normalizer.as_ref(), part);
        if how.guarded {
            pieces.normalize(|piece| {
                piece.filter(|c| c != BREAK);
                Ok(())
            })?;
        }
        if self.parts.mark_start && how.starts {
            pieces.split(|index, mut piece| {
                if index == 0 && !piece.is_empty() {
                    piece.prepend(SPACE_MARK);
                }
                Ok(iter::once(piece))
            })?;
        }
        if let Some(pre_tokenizer) = &self.parts.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        Ok(pieces)
    }

    /// Every piece by itself, until there are more than `left` tokens, those that the text has yet: what comes after adds to them.
    fn tokenize(&self, pieces: &mut PreTokenizedString, text: &str, how: Encode, left: usize) -> Outcome<()> {
        let count = Cell::new(0);
        let tokenized = pieces.tokenize(|piece| {
            let tokens = self.reserved.tokenize(&self.parts.model, piece.get(), how.reading())?;
            count.set(count.get() + tokens.len());
            if count.get() > left {
                Err("over max_ids".into())
            } else {
                Ok(tokens)
            }
        });
        match tokenized {
            Err(_) if count.get() > left => Err(too_long(text, how.max_ids, String::new())),
            other => other.map_err(failed),
        }
    }

    /// The message with marks that `encode` with `guarded` takes out again: its special tokens are text there.
    pub fn guard(&self, text: &str) -> String {
        self.guard.guard(&self.parts, text)
    }

    /// A chat in which some places must be text: what lies between the special tokens outside of them is read as text.
    fn encode_marked(&self, text: &str, how: Encode, ids: &mut Vec<i32>) -> Outcome<()> {
        let (plain, marked) = guard::take_marks(text);
        let mut marked = marked.into_iter().peekable();
        let as_text = Encode { special_as_text: true, ..how };
        let mut from = 0;
        for found in guard::find(&self.parts.added, self.parts.normalizer.as_ref(), &plain) {
            while marked.next_if(|at| at.end <= found.at.start).is_some() {}
            if how.special_as_text || marked.peek().is_some_and(|at| at.start < found.at.end) {
                continue;
            }
            self.encode_between(&plain, from..found.at.start, as_text, ids)?;
            ids.push(found.id as i32);
            from = found.at.end;
        }
        self.encode_between(&plain, from..plain.len(), as_text, ids)
    }

    fn encode_between(&self, text: &str, at: Range<usize>, how: Encode, ids: &mut Vec<i32>) -> Outcome<()> {
        if at.is_empty() {
            return Ok(());
        }
        self.encode_part(&text[at.clone()], text, Encode { starts: at.start == 0, ..how }, ids)
    }
}
