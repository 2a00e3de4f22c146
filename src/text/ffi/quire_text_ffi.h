/* The C ABI of the Rust crate beside this file: tokenizers and chat templates.
 *
 * Strings are (pointer, bytes) pairs, UTF-8 unless said otherwise, never zero-terminated. A function returns 0 or one of the codes
 * of quire::Code; then *error, where the function has one, holds a message to be freed with quire_text_free. Results are freed
 * with the function named beside them. A panic inside becomes code 13 (internal). Handles are immutable: any thread may use
 * one, and only close must be the last use. The one global state is Rust's panic hook, which the first call sets, so that a panic
 * that becomes an error is not written to stderr as well. */
#ifndef QUIRE_TEXT_FFI_H
#define QUIRE_TEXT_FFI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct quire_tokenizer quire_tokenizer;
typedef struct quire_template quire_template;

typedef struct quire_text {
  char* data;
  size_t bytes;
} quire_text;
void quire_text_free(quire_text text);

typedef struct quire_ids {
  int32_t* data;
  size_t count;
} quire_ids;
void quire_ids_free(quire_ids ids);

/* The contents of a tokenizer.json, and of tokenizer_config.json (0 bytes: none) for add_bos_token and add_eos_token, where its
 * tokenizer_class goes by them. Refused: steps that may make more than 65,536 bytes of one, a template that repeats the text. */
int quire_tokenizer_open_json(const char* json, size_t json_bytes, const char* config, size_t config_bytes,
                              quire_tokenizer** tokenizer, quire_text* error);
/* The contents of a tokenizer.model (SentencePiece), and of tokenizer_config.json for add_bos_token, add_eos_token, legacy,
 * added_tokens_decoder and what it calls special otherwise. */
int quire_tokenizer_open_sentencepiece(const char* model, size_t model_bytes, const char* config,
                                       size_t config_bytes, quire_tokenizer** tokenizer, quire_text* error);
void quire_tokenizer_close(quire_tokenizer* tokenizer);

enum {
  QUIRE_ADD_SPECIAL = 1,     /* what the tokenizer's template puts around a text */
  QUIRE_SPECIAL_AS_TEXT = 2, /* special tokens in the text are plain text */
  QUIRE_GUARDED = 4          /* the text has parts that went through quire_tokenizer_guard */
};
/* A text of more than max_ids ids is code 11 (out of range), given as soon as that is certain: often from its bytes alone.
 * Where quire_tokenizer_reads_in_parts, the text is read in parts of part_bytes, or more where no place to cut comes; the ids are those
 * of the whole whatever that is. */
int quire_tokenizer_encode(const quire_tokenizer* tokenizer, const char* text, size_t text_bytes,
                           uint32_t flags, size_t max_ids, size_t part_bytes, quire_ids* ids,
                           quire_text* error);
/* The text with marks in or around its special tokens, which encode with QUIRE_GUARDED takes out again. */
int quire_tokenizer_guard(const quire_tokenizer* tokenizer, const char* text, size_t text_bytes,
                          quire_text* guarded, quire_text* error);

/* 1 where a text may be read in parts: encoding takes some 120 bytes of memory for each byte that is read at once. */
uint8_t quire_tokenizer_reads_in_parts(const quire_tokenizer* tokenizer);
/* Highest id + 1. */
int32_t quire_tokenizer_num_ids(const quire_tokenizer* tokenizer);
/* -1 where there is none. */
int32_t quire_tokenizer_token_id(const quire_tokenizer* tokenizer, const char* token, size_t token_bytes);

/* One id. The pointers live as long as the tokenizer; bytes may be any bytes. */
typedef struct quire_token {
  const char* spelling; /* null where the id has no token */
  size_t spelling_bytes;
  const char* bytes;
  size_t num_bytes;
  uint8_t special;
} quire_token;
quire_token quire_tokenizer_token(const quire_tokenizer* tokenizer, int32_t id);

typedef struct quire_decode_rules {
  uint8_t strip_leading_space;
  uint8_t replace_each_byte;
} quire_decode_rules;
quire_decode_rules quire_tokenizer_decode_rules(const quire_tokenizer* tokenizer);

/* variables: a JSON object that every rendering sees. max_steps: instructions (the checks of values are some), and one more per 64
 * bytes made or four parts of a list or map looked through. No template ends the thread's stack, if that has 2 MiB. */
int quire_template_open(const char* source, size_t source_bytes, const char* variables,
                        size_t variables_bytes, uint64_t max_steps, uint64_t max_output_bytes,
                        quire_template** chat_template, quire_text* error);
void quire_template_close(quire_template* chat_template);
int quire_template_render(const quire_template* chat_template, const char* variables, size_t variables_bytes,
                          int64_t now_unix_s, quire_text* rendered, quire_text* error);

#ifdef __cplusplus
}
#endif
#endif
