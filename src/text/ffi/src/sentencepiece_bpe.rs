//! SentencePiece's BPE (Kudo and Richardson 2018, and its source's definition): start from characters and, again and again, join
//! the adjacent pair whose joined piece has the highest score, the leftmost of equals. A piece that stays outside the vocabulary
//! becomes its bytes, or the unknown token. `tokenizers` has ranked merges instead: a pair's rank cannot express "leftmost of equal
//! scores", which runs of spaces need.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};

use tokenizers::models::{bpe::BpeTrainer, TrainerWrapper};
use tokenizers::{Model, Token};

pub struct Piece {
    pub id: u32,
    pub score: f32,
    /// Two pieces may be joined into this one. Control, unknown and byte pieces are never found in text.
    pub joins: bool,
}

pub struct SentencePieceBpe {
    pub pieces: HashMap<String, Piece>,
    pub spellings: Vec<String>,
    pub unknown: u32,
    pub bytes: Option<Vec<u32>>,   // id of each byte, with byte fallback
    pub user_defined: Vec<String>, // matched first and never split, longest first
}

/// A stretch of the text, in a doubly linked list; an empty one was joined to its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    left: Option<usize>,
    right: Option<usize>,
    fixed: bool,
}

struct Join {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize, // of the joined piece: tells whether both sides are still what they were
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Join {}

impl SentencePieceBpe {
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let user = self.user_defined.iter().find(|piece| rest.starts_with(piece.as_str()));
            let bytes = user.map_or_else(|| rest.chars().next().map_or(1, char::len_utf8), String::len);
            let index = symbols.len();
            symbols.push(Symbol {
                start: at,
                end: at + bytes,
                left: index.checked_sub(1),
                right: (at + bytes < text.len()).then_some(index + 1),
                fixed: user.is_some(),
            });
            at += bytes;
        }
        symbols
    }

    fn join_of(&self, text: &str, symbols: &[Symbol], left: Option<usize>, right: Option<usize>) -> Option<Join> {
        let (left, right) = (left?, right?);
        if symbols[left].fixed || symbols[right].fixed {
            return None;
        }
        let joined = &text[symbols[left].start..symbols[right].end];
        let piece = self.pieces.get(joined).filter(|piece| piece.joins)?;
        Some(Join { score: piece.score, left, right, bytes: joined.len() })
    }

    fn segment(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = self.symbols(text);
        let mut joins: BinaryHeap<Join> =
            (1..symbols.len()).filter_map(|i| self.join_of(text, &symbols, Some(i - 1), Some(i))).collect();
        while let Some(join) = joins.pop() {
            let (left, right) = (symbols[join.left], symbols[join.right]);
            let gone = left.start == left.end || right.start == right.end;
            if gone || right.end - left.start != join.bytes || left.right != Some(join.right) {
                continue; // one side has been joined to something else since
            }
            symbols[join.left].end = right.end;
            symbols[join.left].right = right.right;
            symbols[join.right].end = right.start;
            if let Some(next) = right.right {
                symbols[next].left = Some(join.left);
            }
            joins.extend(self.join_of(text, &symbols, left.left, Some(join.left)));
            joins.extend(self.join_of(text, &symbols, Some(join.left), right.right));
        }
        symbols.retain(|symbol| symbol.start < symbol.end);
        symbols
    }

    fn token(&self, id: u32, offsets: (usize, usize)) -> Token {
        Token::new(id, self.spellings[id as usize].clone(), offsets)
    }
}

impl Model for SentencePieceBpe {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let mut tokens: Vec<Token> = Vec::new();
        for symbol in self.segment(text) {
            let (piece, offsets) = (&text[symbol.start..symbol.end], (symbol.start, symbol.end));
            match (self.pieces.get(piece).filter(|found| found.joins || symbol.fixed), &self.bytes) {
                (Some(found), _) => tokens.push(self.token(found.id, offsets)),
                (None, Some(bytes)) => tokens.extend(piece.bytes().map(|b| self.token(bytes[b as usize], offsets))),
                // Neighbouring unknown characters are one unknown token, as in SentencePiece.
                (None, None) if tokens.last().map(|token| token.id) == Some(self.unknown) => {}
                (None, None) => tokens.push(self.token(self.unknown, offsets)),
            }
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.pieces.get(token).map(|piece| piece.id)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.spellings.get(id as usize).cloned()
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.pieces.iter().map(|(spelling, piece)| (spelling.clone(), piece.id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.spellings.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("a SentencePiece model is read only".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        TrainerWrapper::BpeTrainer(BpeTrainer::default())
    }
}
