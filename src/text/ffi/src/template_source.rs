//! What a template's source may be. minijinja's parser calls itself for some operators and for `elif`, and what walks or frees its tree
//! does so for every operator: a chain of 20,000 ends the thread's stack. So the lengths of tags are bounded before it sees them.

use minijinja::machinery::{tokenize, Token};
use minijinja::syntax::SyntaxConfig;

use crate::{invalid, Outcome};

/// Over ten times the largest of the templates that published models have.
const MAX_SOURCE_BYTES: usize = 512 << 10;
const MAX_TAG_TOKENS: usize = 1000;
const MAX_ELIFS: usize = 200;

/// Hugging Face's tags around what an assistant said, for training, change nothing that is put out; the parser does not know them.
pub fn without_generation_tags(source: &str, syntax: &SyntaxConfig) -> String {
    let (mut plain, mut from, mut begins) = (String::with_capacity(source.len()), 0, false);
    for (token, span) in tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        let known = match token {
            Token::Ident("generation") if begins => Some("with"),
            Token::Ident("endgeneration") if begins => Some("endwith"),
            _ => None,
        };
        if let Some(known) = known {
            plain.push_str(&source[from..span.start_offset as usize]);
            plain.push_str(known);
            from = span.end_offset as usize;
        }
        begins = matches!(token, Token::BlockStart);
    }
    plain.push_str(&source[from..]);
    plain
}

pub fn check(source: &str, syntax: &SyntaxConfig) -> Outcome<()> {
    let over = |what: &str, limit: usize| Err(invalid(format!("chat template has {what}; {limit} is the limit")));
    if source.len() > MAX_SOURCE_BYTES {
        return over(&format!("{} bytes", source.len()), MAX_SOURCE_BYTES);
    }
    let (mut in_tag, mut elifs) = (0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        let Ok((token, span)) = token else { return Ok(()) }; // for the parser to tell
        match token {
            Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        in_tag += 1;
        if in_tag > MAX_TAG_TOKENS {
            return over(&format!("a tag of more than {MAX_TAG_TOKENS} tokens at line {}", span.start_line), MAX_TAG_TOKENS);
        }
        if elifs > MAX_ELIFS {
            return over(&format!("more than {MAX_ELIFS} \"elif\""), MAX_ELIFS);
        }
    }
    Ok(())
}
