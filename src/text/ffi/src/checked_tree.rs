//! A template's syntax tree with a check wherever a value is worked on. The fuel of minijinja counts instructions and the bytes that
//! they make; one operator on a value that holds another many times over, deep inside or lazily, can cost any multiple of that. So the
//! tree is copied with a filter around every operand: `value_bounds` says what the filters see to.
//!
//! What keeps the copy small: a variable, an attribute or an item was checked when it was made, so looking into it is not checked again.

use std::collections::BTreeSet;

use minijinja::machinery::ast::*;
use minijinja::Value;

use crate::value_bounds::{CHARGED, CLOSED, ITEM, KEY, SETTLED, SPLAT, STORED};

/// Filters and tests that do not look inside a list or a map.
const SHALLOW_FILTERS: [&str; 6] = ["length", "count", "default", "d", "first", "safe"];
const SHALLOW_TESTS: [&str; 14] = [
    "defined",
    "undefined",
    "none",
    "string",
    "number",
    "integer",
    "int",
    "float",
    "boolean",
    "mapping",
    "sequence",
    "iterable",
    "true",
    "false",
];

fn filtered<'a>(name: &'static str, expr: Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    Expr::Filter(Spanned::new(Filter { name, expr: Some(expr), args: Vec::new() }, span))
}

fn is_scalar(expr: &Expr) -> bool {
    matches!(expr, Expr::Const(constant) if constant.value.as_object().is_none())
}

/// What was checked when it was made.
fn is_place(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(_) | Expr::GetAttr(_) | Expr::GetItem(_))
}

/// Of an operation whose cost grows with the whole value.
fn whole<'a>(expr: &Expr<'a>) -> Expr<'a> {
    if is_scalar(expr) {
        copy(expr)
    } else {
        filtered(SETTLED, copy(expr))
    }
}

/// Of a slice: all of a text is looked at, and of a list no more than what the slice settles.
fn outside<'a>(expr: &Expr<'a>) -> Expr<'a> {
    if is_place(expr) {
        filtered(CHARGED, copy(expr))
    } else {
        whole(expr)
    }
}

/// Of one that costs the same for any value that was checked.
fn made<'a>(expr: &Expr<'a>) -> Expr<'a> {
    if is_place(expr) {
        copy(expr)
    } else {
        whole(expr)
    }
}

/// `by`: what is around each.
fn args_by<'a>(args: &[CallArg<'a>], by: &'static str) -> Vec<CallArg<'a>> {
    let whole = |expr: &Expr<'a>| if is_scalar(expr) { copy(expr) } else { filtered(by, copy(expr)) };
    let checked = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(expr) => CallArg::Pos(whole(expr)),
        CallArg::Kwarg(name, expr) => CallArg::Kwarg(name, whole(expr)),
        CallArg::PosSplat(expr) => CallArg::PosSplat(filtered(SPLAT, whole(expr))),
        CallArg::KwargSplat(expr) => CallArg::KwargSplat(whole(expr)),
    };
    args.iter().map(checked).collect()
}

fn args<'a>(args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    args_by(args, SETTLED)
}

fn call<'a>(call: &Spanned<Call<'a>>) -> Spanned<Call<'a>> {
    let expr = match &call.expr {
        Expr::GetAttr(attr) if !matches!(&attr.expr, Expr::Var(var) if var.id == "self") => {
            Expr::GetAttr(Spanned::new(GetAttr { expr: whole(&attr.expr), name: attr.name }, attr.span()))
        }
        other => copy(other),
    };
    // loop.changed() keeps its arguments: one that holds the loop would never be freed.
    let keeps = matches!(&call.expr, Expr::GetAttr(attr) if attr.name == "changed");
    let args = args_by(&call.args, if keeps { STORED } else { SETTLED });
    Spanned::new(Call { expr, args }, call.span())
}

/// Any filter pays for the text that it works on.
fn filter<'a>(filter: &Filter<'a>) -> Filter<'a> {
    let shallow = SHALLOW_FILTERS.contains(&filter.name);
    let expr = filter.expr.as_ref().map(|expr| if shallow { made(expr) } else { whole(expr) });
    Filter { name: filter.name, expr, args: args(&filter.args) }
}

/// A name looks up the same in any value; a place in a text costs all that comes before it.
fn get_item<'a>(item: &Spanned<GetItem<'a>>) -> Expr<'a> {
    let (expr, subscript_expr) = (made(&item.expr), whole(&item.subscript_expr));
    if matches!(&item.subscript_expr, Expr::Const(name) if name.value.as_str().is_some()) {
        return Expr::GetItem(Spanned::new(GetItem { expr, subscript_expr }, item.span()));
    }
    Expr::Filter(Spanned::new(Filter { name: ITEM, expr: Some(expr), args: vec![CallArg::Pos(subscript_expr)] }, item.span()))
}

fn key<'a>(expr: &Expr<'a>) -> Expr<'a> {
    if matches!(expr, Expr::Const(constant) if constant.value.as_str().is_some()) {
        copy(expr)
    } else {
        filtered(KEY, whole(expr))
    }
}

fn items<'a>(items: &[Expr<'a>]) -> Vec<Expr<'a>> {
    items.iter().map(made).collect()
}

fn unary<'a>(unary: &UnaryOp<'a>) -> UnaryOp<'a> {
    match unary.op {
        UnaryOpKind::Not => UnaryOp { op: UnaryOpKind::Not, expr: made(&unary.expr) },
        UnaryOpKind::Neg => UnaryOp { op: UnaryOpKind::Neg, expr: whole(&unary.expr) },
    }
}

fn binary<'a>(binary: &BinOp<'a>) -> BinOp<'a> {
    let operand = if matches!(binary.op, BinOpKind::ScAnd | BinOpKind::ScOr) { made } else { whole };
    BinOp { op: binary.op, left: operand(&binary.left), right: operand(&binary.right) }
}

fn compare<'a>(compare: &Compare<'a>) -> Compare<'a> {
    let ops = compare.ops.iter().map(|op| CompareOp { op: op.op, expr: whole(&op.expr) });
    Compare { expr: whole(&compare.expr), ops: ops.collect() }
}

fn copy<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    let bound = |expr: &Option<Expr<'a>>| expr.as_ref().map(whole);
    match expr {
        Expr::Var(e) => Expr::Var(Spanned::new(Var { id: e.id }, span)),
        Expr::Const(e) => Expr::Const(Spanned::new(Const { value: e.value.clone() }, span)),
        Expr::Slice(e) => {
            let slice = Slice { expr: outside(&e.expr), start: bound(&e.start), stop: bound(&e.stop), step: bound(&e.step) };
            Expr::Slice(Spanned::new(slice, span))
        }
        Expr::UnaryOp(e) => Expr::UnaryOp(Spanned::new(unary(e), span)),
        Expr::BinOp(e) => Expr::BinOp(Spanned::new(binary(e), span)),
        Expr::Compare(e) => Expr::Compare(Spanned::new(compare(e), span)),
        Expr::IfExpr(e) => {
            let false_expr = e.false_expr.as_ref().map(copy);
            let chosen = IfExpr { test_expr: made(&e.test_expr), true_expr: copy(&e.true_expr), false_expr };
            Expr::IfExpr(Spanned::new(chosen, span))
        }
        Expr::Filter(e) => Expr::Filter(Spanned::new(filter(e), span)),
        Expr::Test(e) => {
            let shallow = SHALLOW_TESTS.contains(&e.name);
            let subject = if shallow { made(&e.expr) } else { whole(&e.expr) };
            Expr::Test(Spanned::new(Test { name: e.name, expr: subject, args: args(&e.args) }, span))
        }
        Expr::GetAttr(e) => Expr::GetAttr(Spanned::new(GetAttr { expr: made(&e.expr), name: e.name }, span)),
        Expr::GetItem(e) => get_item(e),
        Expr::Call(e) => Expr::Call(call(e)),
        Expr::List(e) => Expr::List(Spanned::new(List { items: items(&e.items) }, span)),
        Expr::Tuple(e) => Expr::Tuple(Spanned::new(Tuple { items: items(&e.items) }, span)),
        Expr::Map(e) => {
            let keys = e.keys.iter().map(key).collect();
            Expr::Map(Spanned::new(Map { keys, values: items(&e.values) }, span))
        }
    }
}

/// What is assigned to: names, or an attribute of a namespace.
fn target<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    match expr {
        Expr::List(e) => Expr::List(Spanned::new(List { items: e.items.iter().map(target).collect() }, span)),
        Expr::Tuple(e) => Expr::Tuple(Spanned::new(Tuple { items: e.items.iter().map(target).collect() }, span)),
        other => copy(other),
    }
}

fn stored<'a>(to: &Expr<'a>, expr: &Expr<'a>) -> Expr<'a> {
    match to {
        Expr::Var(_) => made(expr),
        _ => filtered(STORED, copy(expr)),
    }
}

fn price<'a>(of: &Stmt<'a>) -> Option<Stmt<'a>> {
    let span = match of {
        Stmt::Macro(e) => e.span(),
        Stmt::CallBlock(e) => e.span(),
        _ => return None,
    };
    let constant = |value: Value| Expr::Const(Spanned::new(Const { value }, span));
    let args = vec![CallArg::Pos(constant(Value::from(span.end_offset - span.start_offset)))];
    Some(emit(Expr::Filter(Spanned::new(Filter { name: CLOSED, expr: Some(constant("".into())), args }, span))))
}

fn body<'a>(stmts: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    stmts.iter().flat_map(|stmt| price(stmt).into_iter().chain([tree(stmt)])).collect()
}

fn for_loop<'a>(e: &ForLoop<'a>) -> ForLoop<'a> {
    ForLoop {
        target: target(&e.target),
        iter: made(&e.iter),
        filter_expr: e.filter_expr.as_ref().map(made),
        recursive: e.recursive,
        body: body(&e.body),
        else_body: body(&e.else_body),
    }
}

fn macro_decl<'a>(e: &Macro<'a>) -> Macro<'a> {
    let defaults = e.defaults.iter().map(made).collect();
    Macro { name: e.name, args: e.args.iter().map(target).collect(), defaults, body: body(&e.body) }
}

fn emit<'a>(expr: Expr<'a>) -> Stmt<'a> {
    let span = expr.span();
    Stmt::EmitExpr(Spanned::new(EmitExpr { expr }, span))
}

/// A copy of the tree with its checks.
pub fn tree<'a>(stmt: &Stmt<'a>) -> Stmt<'a> {
    match stmt {
        Stmt::Template(e) => Stmt::Template(Spanned::new(Template { children: body(&e.children) }, e.span())),
        Stmt::EmitExpr(e) => emit(whole(&e.expr)),
        // As an expression, which the formatter sees and counts.
        Stmt::EmitRaw(e) => emit(Expr::Const(Spanned::new(Const { value: Value::from_safe_string(e.raw.into()) }, e.span()))),
        Stmt::ForLoop(e) => Stmt::ForLoop(Spanned::new(for_loop(e), e.span())),
        Stmt::IfCond(e) => {
            let cond = IfCond { expr: made(&e.expr), true_body: body(&e.true_body), false_body: body(&e.false_body) };
            Stmt::IfCond(Spanned::new(cond, e.span()))
        }
        Stmt::WithBlock(e) => {
            let assignments = e.assignments.iter().map(|(to, expr)| (target(to), stored(to, expr))).collect();
            Stmt::WithBlock(Spanned::new(WithBlock { assignments, body: body(&e.body) }, e.span()))
        }
        Stmt::Set(e) => Stmt::Set(Spanned::new(Set { target: target(&e.target), expr: stored(&e.target, &e.expr) }, e.span())),
        Stmt::SetBlock(e) => {
            let block = SetBlock { target: target(&e.target), filter: e.filter.as_ref().map(copy), body: body(&e.body) };
            Stmt::SetBlock(Spanned::new(block, e.span()))
        }
        Stmt::AutoEscape(e) => {
            Stmt::AutoEscape(Spanned::new(AutoEscape { enabled: made(&e.enabled), body: body(&e.body) }, e.span()))
        }
        Stmt::FilterBlock(e) => {
            let block = FilterBlock { filter: whole(&e.filter), filter_span: e.filter_span, body: body(&e.body) };
            Stmt::FilterBlock(Spanned::new(block, e.span()))
        }
        Stmt::Macro(e) => Stmt::Macro(Spanned::new(macro_decl(e), e.span())),
        Stmt::CallBlock(e) => {
            let decl = Spanned::new(macro_decl(&e.macro_decl), e.macro_decl.span());
            let block = CallBlock { call: call(&e.call), call_expr_span: e.call_expr_span, macro_decl: decl };
            Stmt::CallBlock(Spanned::new(block, e.span()))
        }
        Stmt::Continue(e) => Stmt::Continue(Spanned::new(Continue, e.span())),
        Stmt::Break(e) => Stmt::Break(Spanned::new(Break, e.span())),
        Stmt::Do(e) => Stmt::Do(Spanned::new(Do { call: call(&e.call) }, e.span())),
    }
}

/// The attributes of namespaces that are assigned to, by their names.
pub fn assigned_names<'a>(stmt: &Stmt<'a>, names: &mut BTreeSet<&'a str>) {
    let mut to = |target: &Expr<'a>| {
        if let Expr::GetAttr(attr) = target {
            names.insert(attr.name);
        }
    };
    let bodies: Vec<&[Stmt<'a>]> = match stmt {
        Stmt::Template(e) => vec![&e.children],
        Stmt::ForLoop(e) => vec![&e.body, &e.else_body],
        Stmt::IfCond(e) => vec![&e.true_body, &e.false_body],
        Stmt::WithBlock(e) => vec![&e.body],
        Stmt::Set(e) => {
            to(&e.target);
            vec![]
        }
        Stmt::SetBlock(e) => {
            to(&e.target);
            vec![&e.body]
        }
        Stmt::AutoEscape(e) => vec![&e.body],
        Stmt::FilterBlock(e) => vec![&e.body],
        Stmt::Macro(e) => vec![&e.body],
        Stmt::CallBlock(e) => vec![&e.macro_decl.body],
        _ => vec![],
    };
    bodies.into_iter().flatten().for_each(|stmt| assigned_names(stmt, names));
}
