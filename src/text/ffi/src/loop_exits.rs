//! Where a template's `break` and `continue` may stand. minijinja 3.1 compiles them to a plain jump, so that a block between one and its
//! loop stays open: the frame of `with`, the output that `set` or `filter` collect, the setting of `autoescape`. A rendering then ends
//! deep in the wrong place ("recursion limit", or a fault). In the `else` of a loop with none around it they jump to the template's
//! start. Such a template is refused.

use minijinja::machinery::ast::{Spanned, Stmt};
use minijinja::{Error, ErrorKind};

#[derive(Clone, Copy)]
enum Inside {
    NoLoop,
    Loop,
    BlockOfLoop(&'static str),
}

impl Inside {
    fn block(self, name: &'static str) -> Inside {
        match self {
            Inside::NoLoop => Inside::NoLoop,
            _ => Inside::BlockOfLoop(name),
        }
    }
}

fn exit<T>(word: &str, at: &Spanned<T>, inside: Inside) -> Result<(), Error> {
    let line = at.span().start_line;
    let why = match inside {
        Inside::Loop => return Ok(()),
        Inside::NoLoop => format!("`{word}` at line {line} is not inside a loop"),
        Inside::BlockOfLoop(block) => {
            format!("`{word}` at line {line} is in a `{block}` block inside its loop, which is not supported; end the block before it")
        }
    };
    Err(Error::new(ErrorKind::SyntaxError, why))
}

fn all(stmts: &[Stmt], inside: Inside) -> Result<(), Error> {
    stmts.iter().try_for_each(|stmt| one(stmt, inside))
}

fn one(stmt: &Stmt, inside: Inside) -> Result<(), Error> {
    match stmt {
        Stmt::Template(e) => all(&e.children, inside),
        Stmt::ForLoop(e) => all(&e.body, Inside::Loop).and_then(|()| all(&e.else_body, inside)),
        Stmt::IfCond(e) => all(&e.true_body, inside).and_then(|()| all(&e.false_body, inside)),
        // A `generation` block is one of these too (template_source).
        Stmt::WithBlock(e) => all(&e.body, inside.block("with")),
        Stmt::SetBlock(e) => all(&e.body, inside.block("set")),
        Stmt::AutoEscape(e) => all(&e.body, inside.block("autoescape")),
        Stmt::FilterBlock(e) => all(&e.body, inside.block("filter")),
        Stmt::Macro(e) => all(&e.body, Inside::NoLoop),
        Stmt::CallBlock(e) => all(&e.macro_decl.body, Inside::NoLoop),
        Stmt::Break(e) => exit("break", e, inside),
        Stmt::Continue(e) => exit("continue", e, inside),
        _ => Ok(()),
    }
}

pub fn check(template: &Stmt) -> Result<(), Error> {
    one(template, Inside::NoLoop)
}
