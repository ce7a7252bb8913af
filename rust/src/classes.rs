//! Tokenizers as transformers 5 makes them of a model's files. Some classes that tokenizer_config.json names keep of
//! tokenizer.json its vocabulary, its merges and its post-processor only, and put their own in the place of the rest; and of
//! all classes some tokens stand in the files beside it.

use std::collections::{BTreeMap, HashSet};

use serde_json::{json, Map, Value as Json};
use tokenizers::models::bpe::BPE;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer,
};

/// The classes that replace parts of tokenizer.json. `AsItStands`: all others, `PreTrainedTokenizerFast` above all.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    AsItStands,
    Llama,
    CodeLlama,
    Gpt2,
    GptNeoX,
    Qwen2,
    Gemma,
}

const STANDARD: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];
const END_OF_TEXT: &str = "<|endoftext|>";

impl Class {
    /// `files`: see `ReadTokenizerFiles` in `lib/text/tokenizer_files.h`. As for transformers, some families' files name a class
    /// that is not theirs.
    fn of(files: &Json) -> Class {
        let family = files["config"]["model_type"].as_str().unwrap_or_default();
        let named = files["tokenizer_config"]["tokenizer_class"]
            .as_str()
            .or(files["config"]["tokenizer_class"].as_str());
        let named = named.map(|name| name.strip_suffix("Fast").unwrap_or(name));
        match (family, named) {
            ("qwen2", _) => Class::Qwen2,
            ("mistral" | "phi3" | "granite" | "olmo2", _) => Class::AsItStands,
            // Llama 3 and DeepSeek name the class of Llama 2.
            (_, Some("LlamaTokenizer")) if files["byte_level"] == true => Class::AsItStands,
            (_, Some("LlamaTokenizer")) => Class::Llama,
            (_, Some("CodeLlamaTokenizer")) => Class::CodeLlama,
            (_, Some("GPT2Tokenizer")) => Class::Gpt2,
            (_, Some("GPTNeoXTokenizer")) => Class::GptNeoX,
            (_, Some("Qwen2Tokenizer")) => Class::Qwen2,
            (_, Some("GemmaTokenizer")) => Class::Gemma,
            ("qwen3" | "qwen3_moe", None) => Class::Qwen2,
            ("gemma2" | "gemma3_text", None) => Class::Gemma,
            _ => Class::AsItStands,
        }
    }

    /// Tokens that a tokenizer of the class has unless the files give another one, or null.
    fn own_tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Class::AsItStands => &[],
            Class::Llama => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
            ],
            Class::CodeLlama => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("prefix_token", "▁<PRE>"),
                ("middle_token", "▁<MID>"),
                ("suffix_token", "▁<SUF>"),
                ("eot_token", "▁<EOT>"),
                ("fill_token", "<FILL_ME>"),
            ],
            Class::Gpt2 => &[
                ("bos_token", END_OF_TEXT),
                ("eos_token", END_OF_TEXT),
                ("unk_token", END_OF_TEXT),
            ],
            Class::GptNeoX => &[
                ("bos_token", END_OF_TEXT),
                ("eos_token", END_OF_TEXT),
                ("unk_token", END_OF_TEXT),
                ("pad_token", "<|padding|>"),
            ],
            Class::Qwen2 => &[
                ("eos_token", END_OF_TEXT),
                ("unk_token", END_OF_TEXT),
                ("pad_token", END_OF_TEXT),
            ],
            Class::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
        }
    }
}

/// What the files say of special tokens.
struct SpecialTokens {
    /// By name, as `eos_token`: a text, or an object with `content`.
    named: Vec<(String, Json)>,
    others: Vec<Json>,
    /// The tokens of `added_tokens_decoder`; with it the older files beside tokenizer.json do not count.
    numbered: Option<Map<String, Json>>,
}

impl SpecialTokens {
    fn of(class: Class, files: &Json) -> Self {
        let config = &files["tokenizer_config"];
        let numbered = config["added_tokens_decoder"].as_object().cloned();
        let mut others = unnamed_tokens(config);
        let of_config = config.as_object().cloned().into_iter().flatten();
        let mut given: Map<_, _> = of_config
            .filter(|(name, _)| name.ends_with("_token"))
            .collect();
        given.extend(
            config["extra_special_tokens"]
                .as_object()
                .cloned()
                .into_iter()
                .flatten(),
        );
        let has_list = config.get("additional_special_tokens").is_some()
            || config
                .get("extra_special_tokens")
                .is_some_and(|tokens| !tokens.is_object());
        if numbered.is_none() {
            let older = files["special_tokens_map"].as_object();
            for (name, token) in older.into_iter().flatten() {
                match name.as_str() {
                    "extra_special_tokens" => others.extend(tokens_of(token)),
                    "additional_special_tokens" if !has_list => others = tokens_of(token),
                    _ => {
                        given.insert(name.clone(), as_special(token));
                    }
                }
            }
        }
        let own = class.own_tokens().iter();
        let own = own.map(|(name, token)| (name.to_string(), Json::from(*token)));
        let mut by_name: Map<String, Json> = own.collect();
        by_name.extend(given);
        let rank = |name: &str| STANDARD.iter().position(|standard| *standard == name);
        let mut named: Vec<_> = by_name
            .into_iter()
            .filter(|(_, token)| content(token).is_some())
            .collect();
        named.sort_by_key(|(name, _)| rank(name).unwrap_or(STANDARD.len()));
        if class == Class::CodeLlama && others.is_empty() {
            let own = class.own_tokens().iter().skip(3);
            others = own.map(|(_, token)| Json::from(*token)).collect();
        }
        SpecialTokens {
            named,
            others,
            numbered,
        }
    }

    fn text_of(&self, name: &str) -> Option<&str> {
        let (_, token) = self.named.iter().find(|(known, _)| known == name)?;
        content(token)
    }

    fn contents(&self) -> impl Iterator<Item = &str> {
        let named = self.named.iter().map(|(_, token)| token);
        named.chain(&self.others).filter_map(content)
    }
}

fn unnamed_tokens(config: &Json) -> Vec<Json> {
    match &config["extra_special_tokens"] {
        Json::Array(tokens) if !tokens.is_empty() => tokens.clone(),
        _ => tokens_of(&config["additional_special_tokens"]),
    }
}

fn tokens_of(list: &Json) -> Vec<Json> {
    list.as_array().cloned().unwrap_or_default()
}

fn as_special(token: &Json) -> Json {
    let mut token = token.clone();
    if let Some(fields) = token.as_object_mut() {
        fields.insert("special".into(), true.into());
    }
    token
}

fn content(token: &Json) -> Option<&str> {
    token.as_str().or(token["content"].as_str())
}

/// None for what is no token.
fn added_token(token: &Json) -> Option<AddedToken> {
    let content = content(token)?;
    if token.is_string() {
        return Some(AddedToken::from(content, true));
    }
    let is = |name: &str| token[name].as_bool();
    let special = is("special").unwrap_or(false);
    Some(AddedToken {
        content: content.into(),
        single_word: is("single_word").unwrap_or(false),
        lstrip: is("lstrip").unwrap_or(false),
        rstrip: is("rstrip").unwrap_or(false),
        normalized: is("normalized").unwrap_or(!special),
        special,
    })
}

/// The texts of the tokens that have names (`eos_token`), as a JSON object.
pub fn named_tokens(files: &str) -> Result<String, String> {
    let files = parsed(files)?;
    let tokens = SpecialTokens::of(Class::of(&files), &files);
    let texts = tokens.named.iter();
    let texts: Map<_, _> = texts
        .map(|(name, token)| (name.clone(), content(token).into()))
        .collect();
    Ok(Json::Object(texts).to_string())
}

fn parsed(files: &str) -> Result<Json, String> {
    serde_json::from_str(files).map_err(|e| format!("bad files of a tokenizer: {e}"))
}

/// `json`: the contents of a tokenizer.json.
pub fn load(json: &str, files: &str) -> Result<Tokenizer, String> {
    let files = parsed(files)?;
    let class = Class::of(&files);
    let file = Tokenizer::from_bytes(json).map_err(|e| format!("is no tokenizer: {e}"))?;
    let tokens = SpecialTokens::of(class, &files);
    let numbered = numbered_tokens(&tokens, &files, &file);
    let config = &files["tokenizer_config"];
    let last = file.get_post_processor().cloned();
    let mut tokenizer = match class {
        Class::AsItStands => file,
        _ => rebuilt(class, &file, &tokens, config)?,
    };
    add_tokens(&mut tokenizer, class, &tokens, numbered).map_err(|e| e.to_string())?;
    let last = post_processor(class, last, &tokens, &tokenizer)?;
    tokenizer.with_post_processor(last);
    // A file may ask for truncation and padding; here the length of a row is the caller's business.
    tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
    tokenizer.with_padding(None);
    tokenizer.set_encode_special_tokens(config["split_special_tokens"] == true);
    Ok(tokenizer)
}

/// The tokens that have a number, in the order of these. Which number a token really has is the tokenizer's to say: that of
/// the vocabulary, or the next one.
fn numbered_tokens(
    tokens: &SpecialTokens,
    files: &Json,
    file: &Tokenizer,
) -> BTreeMap<u32, AddedToken> {
    if let Some(numbered) = &tokens.numbered {
        return numbered
            .iter()
            .filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?)))
            .collect();
    }
    // Those that special_tokens_map.json alone lists without a name do not count.
    let unnamed = unnamed_tokens(&files["tokenizer_config"]);
    let named = tokens.named.iter().map(|(_, token)| token);
    let special: HashSet<&str> = named.chain(&unnamed).filter_map(content).collect();
    let older = files["added_tokens"].as_object().into_iter().flatten();
    let older = older.filter_map(|(content, id)| {
        let token = AddedToken::from(content, special.contains(content.as_str()));
        Some((u32::try_from(id.as_u64()?).ok()?, token))
    });
    older.chain(file.get_added_tokens_decoder()).collect()
}

fn add_tokens(
    tokenizer: &mut Tokenizer,
    class: Class,
    tokens: &SpecialTokens,
    numbered: BTreeMap<u32, AddedToken>,
) -> tokenizers::Result<()> {
    // All of them, also those that the tokenizer has: one that has a name becomes special.
    let mut new: Vec<AddedToken> = numbered.into_values().collect();
    let known = tokenizer.get_added_tokens_decoder().into_values();
    let contents: HashSet<String> = known
        .chain(new.iter().cloned())
        .map(|token| token.content)
        .collect();
    let named = tokens.named.iter().map(|(_, token)| token);
    let special = named.chain(&tokens.others).filter_map(added_token);
    // If one has two names and other flags with each, the last counts.
    new.extend(special.filter(|token| !contents.contains(&token.content)));
    let named: HashSet<&str> = tokens
        .named
        .iter()
        .filter_map(|(_, t)| content(t))
        .collect();
    for token in &mut new {
        token.special |= named.contains(token.content.as_str());
    }
    tokenizer.add_tokens(new)?;
    if class == Class::Qwen2 {
        tokenizer.add_tokens(tokens.contents().map(|text| AddedToken::from(text, true)))?;
    }
    Ok(())
}

/// Cuts texts before merging as Qwen's class does.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer of the file's vocabulary and merges with the class's own of the rest, written as in a tokenizer.json; without the
/// file's added tokens and post-processor.
fn rebuilt(
    class: Class,
    file: &Tokenizer,
    tokens: &SpecialTokens,
    config: &Json,
) -> Result<Tokenizer, String> {
    let ModelWrapper::BPE(model) = file.get_model() else {
        return Err(
            "has another model than BPE, which `tokenizer_class` in tokenizer_config.json stands for; write \
                    \"PreTrainedTokenizerFast\" there to have the file taken as it stands"
                .into(),
        );
    };
    let prefix_space = config["add_prefix_space"].as_bool();
    let spaces = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let bytes = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let byte_level = |prefix_space: bool, use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": use_regex});
    let metaspace = |prepend: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": false});
    let (normalizer, pre_tokenizer, decoder) = match class {
        Class::Llama => {
            let prefix_space = prefix_space.unwrap_or(true);
            let prepend = match (prefix_space, config["legacy"] == true) {
                (false, _) => "never",
                (true, true) => "always",
                (true, false) => "first",
            };
            let mut decoders = vec![spaces, bytes, fuse];
            decoders.extend(prefix_space.then_some(strip));
            (
                Json::Null,
                metaspace(prepend),
                json!({"type": "Sequence", "decoders": decoders}),
            )
        }
        Class::CodeLlama => {
            let prepend = match prefix_space.unwrap_or(true) {
                true => "first",
                false => "never",
            };
            (
                Json::Null,
                metaspace(prepend),
                json!({"type": "Sequence", "decoders": [spaces, bytes, fuse, strip]}),
            )
        }
        Class::Gemma => (
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
            json!({"type": "Sequence", "decoders": [spaces, bytes, fuse]}),
        ),
        Class::Qwen2 => (
            json!({"type": "NFC"}),
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": false},
                byte_level(prefix_space.unwrap_or(false), false),
            ]}),
            byte_level(true, true),
        ),
        Class::GptNeoX => (
            json!({"type": "NFC"}),
            byte_level(prefix_space.unwrap_or(false), true),
            byte_level(true, true),
        ),
        Class::Gpt2 | Class::AsItStands => (
            Json::Null,
            byte_level(prefix_space.unwrap_or(false), true),
            byte_level(true, true),
        ),
    };
    let mut model: BPE = model.clone();
    model.dropout = None;
    model.ignore_merges = false;
    model.fuse_unk = matches!(class, Class::Llama | Class::CodeLlama | Class::Gemma);
    model.byte_fallback = model.fuse_unk;
    model.unk_token = match class {
        Class::CodeLlama | Class::Gemma => tokens.text_of("unk_token").map(str::to_string),
        _ => None,
    };
    let failed = |e: serde_json::Error| e.to_string();
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(
            serde_json::from_value::<Option<NormalizerWrapper>>(normalizer).map_err(failed)?,
        )
        .map_err(|e| e.to_string())?;
    let pre_tokenizer: PreTokenizerWrapper =
        serde_json::from_value(pre_tokenizer).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let decoder: DecoderWrapper = serde_json::from_value(decoder).map_err(failed)?;
    tokenizer.with_decoder(Some(decoder));
    Ok(tokenizer)
}

/// What a rebuilt tokenizer adds to a text that is encoded with special tokens.
fn post_processor(
    class: Class,
    file: Option<PostProcessorWrapper>,
    tokens: &SpecialTokens,
    tokenizer: &Tokenizer,
) -> Result<Option<PostProcessorWrapper>, String> {
    match (class, tokens.text_of("bos_token")) {
        (Class::CodeLlama, Some(bos)) => {
            let id = tokenizer.token_to_id(bos).unwrap_or_default();
            let template = TemplateProcessing::builder()
                .try_single(format!("{bos}:0 $A:0"))
                .map_err(|e| e.to_string())?
                .special_tokens(vec![(bos, id)])
                .build()
                .map_err(|e| e.to_string())?;
            Ok(Some(template.into()))
        }
        (Class::CodeLlama | Class::GptNeoX, _) => Ok(None),
        _ => Ok(file),
    }
}
