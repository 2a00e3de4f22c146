//! BOS and EOS around a text, as tokenizer_config.json tells: always for a tokenizer.model, which does not say, and for a tokenizer.json
//! where it has add_bos_token or add_eos_token and names a class that goes by them.
//!
//! Those are the classes of Hugging Face transformers 4 that make a post-processor of the two instead of taking the one in the file
//! (LlamaTokenizerFast.update_post_processor). Of DeepSeek-R1-Distill-Qwen, whose tokenizer.json puts nothing around a text, BOS is known
//! from there alone. Version 5 takes the file's in any case, and writes neither: files that have one were written for 4.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::PostProcessorWrapper;

use crate::{invalid, Outcome};

/// What a class takes where the configuration does not say.
pub struct Class {
    name: &'static str, // less "Fast"
    bos: &'static str,
    eos: &'static str,
    adds_bos: bool,
}

pub const LLAMA: Class = Class { name: "LlamaTokenizer", bos: "<s>", eos: "</s>", adds_bos: true };

const OTHERS: [Class; 4] = [
    Class { name: "CodeLlamaTokenizer", ..LLAMA },
    Class { name: "GemmaTokenizer", bos: "<bos>", eos: "<eos>", adds_bos: true },
    Class { name: "CohereTokenizer", bos: "<BOS_TOKEN>", eos: "<|END_OF_TURN_TOKEN|>", adds_bos: true },
    Class { name: "GPTNeoXTokenizer", bos: "<|endoftext|>", eos: "<|endoftext|>", adds_bos: false },
];

/// A file's contents; none is no file.
pub fn parse_config(config: &[u8]) -> Outcome<Value> {
    if config.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(config).map_err(|e| invalid(format!("tokenizer_config.json is not JSON: {e}")))
}

/// A token of the configuration, which is a text or an object with one.
pub fn spelled_in(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn told(config: &Value, key: &str) -> Option<bool> {
    config.get(key).and_then(Value::as_bool)
}

fn find(config: &Value, key: &str, default: &str, id_of: impl Fn(&str) -> Option<u32>) -> Outcome<(String, u32)> {
    let token = config.get(key).and_then(spelled_in).unwrap_or(default);
    match id_of(token) {
        Some(id) => Ok((token.to_string(), id)),
        None => Err(invalid(format!("its {key} \"{token}\" is not in its vocabulary"))),
    }
}

/// None where nothing stands around a text.
pub fn of_class(class: &Class, config: &Value, id_of: impl Fn(&str) -> Option<u32>) -> Outcome<Option<PostProcessorWrapper>> {
    let wrong = |e: String| invalid(format!("its BOS and EOS make no template: {e}"));
    let (mut single, mut specials) = (vec!["$A".to_string()], Vec::new());
    if told(config, "add_bos_token").unwrap_or(class.adds_bos) {
        let bos = find(config, "bos_token", class.bos, &id_of)?;
        single.insert(0, bos.0.clone());
        specials.push(bos);
    }
    if told(config, "add_eos_token").unwrap_or(false) {
        let eos = find(config, "eos_token", class.eos, &id_of)?;
        single.push(eos.0.clone());
        specials.push(eos);
    }
    if specials.is_empty() {
        return Ok(None);
    }
    let builder = &mut TemplateProcessing::builder();
    let builder = builder.try_single(single).map_err(|e| wrong(e.to_string()))?;
    Ok(Some(builder.special_tokens(specials).build().map_err(|e| wrong(e.to_string()))?.into()))
}

/// Instead of what the file puts around a text, where the configuration tells.
pub fn of_json(
    file: Option<PostProcessorWrapper>,
    config: &Value,
    ids: &HashMap<String, u32>,
) -> Outcome<Option<PostProcessorWrapper>> {
    let name = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
    let named = |class: &&Class| class.name == name.strip_suffix("Fast").unwrap_or(name);
    let tells = ["add_bos_token", "add_eos_token"].into_iter().any(|key| told(config, key).is_some());
    match std::iter::once(&LLAMA).chain(&OTHERS).find(named) {
        Some(class) if tells => of_class(class, config, |token| ids.get(token).copied()),
        _ => Ok(file),
    }
}
