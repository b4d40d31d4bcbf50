/* Plain C launchers of the d3LLM kernels: device pointers, sizes and a stream in, a status out.
 *
 * Every launcher checks its arguments, enqueues on `stream` (a cudaStream_t) and returns without waiting; none
 * allocates, synchronizes, prints or exits, so all of them may be captured in a CUDA graph. Pointers are device memory
 * unless said otherwise. Set `struct_size` to the size of the struct you compiled against.
 */
#ifndef D3LLM_KERNELS_H
#define D3LLM_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define D3LLM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef enum d3llm_status { D3LLM_SUCCESS = 0, D3LLM_INVALID_ARGUMENT = 1, D3LLM_CUDA_ERROR = 2 } d3llm_status;

typedef enum d3llm_dtype {
  D3LLM_FLOAT32 = 0,
  D3LLM_FLOAT16 = 1,
  D3LLM_BFLOAT16 = 2,
  D3LLM_FLOAT8_E4M3 = 3
} d3llm_dtype;

/* Version of this library, e.g. "0.1.0". */
D3LLM_API const char* d3llm_version(void);

/* What went wrong in the last failed call of this thread; "" if none failed yet. Valid until its next failure. */
D3LLM_API const char* d3llm_last_error(void);

/* Attention of packed windows without a causal mask, over a KV cache.
 *
 * Window b is rows [cu_window[b], cu_window[b + 1]) of qkv; its request lives in slot slots[b] of the cache. Row t
 * stands at the absolute position positions[t] and attends to the cache rows [0, kv_lengths[b]) of its slot. RoPE is
 * half-split and in float32, K is cached after it. Rows behind the last window belong to no request: nothing is cached
 * for them and their output is zero. Rows of one request never see another slot. cu_window starts with 0 and never
 * falls.
 *
 *   qkv        [tokens, (num_heads + 2 * num_kv_heads) * head_dim]   query, then key, then value heads
 *   kv_cache   [num_slots, 2, num_kv_heads, max_seq_len, head_dim]   K, V
 *   out        [tokens, num_heads * head_dim]
 *   positions  [tokens]    cu_window [batch + 1]    kv_lengths, slots [batch]    cos, sin [max_seq_len, head_dim / 2]
 *
 * dtype (of qkv, kv_cache and out) is float16 or bfloat16; head_dim is 32, 64 or 128; num_heads is a multiple of
 * num_kv_heads; all arrays are contiguous; qkv, kv_cache, out, cos and sin are aligned to 16 bytes. Where out_scale is
 * set, out is float8_e4m3 instead: what it would be in dtype, over *out_scale.
 */
typedef struct d3llm_attention_params {
  size_t struct_size;
  const void* qkv;
  void* kv_cache;
  void* out;
  const int64_t* positions;
  const int64_t* cu_window;
  const int64_t* kv_lengths;
  const int64_t* slots;
  const float* cos;
  const float* sin;
  const float* out_scale;
  int64_t tokens;
  int64_t batch;
  int64_t num_slots;
  int64_t max_seq_len;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t dtype; /* d3llm_dtype */
} d3llm_attention_params;

/* K (rotated) and V of every window into the cache; reads qkv. */
D3LLM_API d3llm_status d3llm_write_kv(const d3llm_attention_params* params, void* stream);

/* Queries (rotated here) against what the cache holds; writes out. */
D3LLM_API d3llm_status d3llm_attend(const d3llm_attention_params* params, void* stream);

/* Both, overlapped where the GPU can. */
D3LLM_API d3llm_status d3llm_window_attention(const d3llm_attention_params* params, void* stream);

/* Ids that end one request's answer at most. */
#define D3LLM_END_IDS 8

/* One pass over each row of logits: the most likely token, entropy, and a sampled token with its probability.
 *
 * The mask id stays in the softmax and is never chosen; of equals the lowest id wins. entropy is
 * -sum p ln(p + entropy_eps) in nats at temperature 1. With `temperature`, rows where it is above 0 sample: the largest
 * of logits + temperature * Gumbel noise, a function of seed, position, pass number and token id only. Without
 * (temperature, seed, position and number NULL) sampled equals greedy. confidence is the probability of `sampled` at
 * temperature 1, logprob its logarithm in nats, greedy_logprob that of `greedy`. A row with NaN gives a NaN entropy.
 *
 * Where a row of `barred` has ids before its first negative one, those are never chosen either. Where top_k (above 0)
 * or top_p (below 1) limit a row that samples, only the first tokens of the order of their logits, equals by id, may be
 * sampled: top_k of them, and of these the fewest whose share of their mass at the temperature reaches top_p. Such rows
 * are read once or twice more, and oftener only where more than 1024 tokens lie within a sixteenth of an octave of
 * probability around the limit, or where more than 1024 tokens are left to both limits together. Both are NULL for no
 * limit.
 *
 *   logits  [rows, vocab_size], rows row_stride elements apart; float32, float16 or bfloat16
 *   barred  [rows, D3LLM_END_IDS]    everything else [rows]
 */
typedef struct d3llm_select_params {
  size_t struct_size;
  const void* logits;
  int64_t rows;
  int64_t vocab_size;
  int64_t row_stride;
  int64_t mask_id;
  const float* entropy_eps;
  const float* temperature;
  const int64_t* seed;
  const int64_t* position;
  const int64_t* number;
  const int64_t* top_k;
  const double* top_p;
  const int64_t* barred;
  int64_t* greedy;
  int64_t* sampled;
  float* entropy;
  float* confidence;
  float* logprob;
  float* greedy_logprob;
  int32_t dtype; /* d3llm_dtype of logits */
} d3llm_select_params;

D3LLM_API d3llm_status d3llm_select(const d3llm_select_params* params, void* stream);

/* The decoding state of all slots, as d3llm_trt/plugins/state_fields.py describes it field by field: FIELD(type, name).
 * Settings are [num_slots] each but for end_ids, [num_slots, D3LLM_END_IDS]; algorithm is 0 FullAttnMultiBlock,
 * 1 EntropyThreshold, 2 MultiBlock, 3 LowConfidence.
 */
#define D3LLM_SETTINGS(FIELD)            \
  FIELD(int64_t, algorithm)              \
  FIELD(int64_t, prompt_length)          \
  FIELD(int64_t, length)                 \
  FIELD(int64_t, block_size)             \
  FIELD(int64_t, num_blocks)             \
  FIELD(int64_t, eos_id)                 \
  FIELD(int64_t, end_ids)                \
  FIELD(int64_t, min_tokens)             \
  FIELD(float, threshold)                \
  FIELD(uint8_t, by_quota)               \
  FIELD(float, entropy_eps)              \
  FIELD(double, block_add_threshold)     \
  FIELD(double, decoded_token_threshold) \
  FIELD(uint8_t, cached)                 \
  FIELD(int64_t, cache_delay)            \
  FIELD(int64_t, refresh_interval)       \
  FIELD(uint8_t, full_settling)          \
  FIELD(int64_t, window_ahead)           \
  FIELD(uint8_t, published_shift)        \
  FIELD(int64_t, steps_per_block)        \
  FIELD(float, temperature)              \
  FIELD(int64_t, top_k)                  \
  FIELD(double, top_p)                   \
  FIELD(int64_t, seed)

/* canvas, commit_steps, logprobs and candidates are [num_slots, max_seq_len]; active, block_cached and done_pass are
 * [num_slots, max_seq_len + 1]; the rest is [num_slots].
 */
#define D3LLM_PROGRESS(FIELD)  \
  FIELD(int64_t, canvas)       \
  FIELD(int64_t, commit_steps) \
  FIELD(float, logprobs)       \
  FIELD(uint8_t, candidates)   \
  FIELD(uint8_t, active)       \
  FIELD(uint8_t, block_cached) \
  FIELD(int64_t, done_pass)    \
  FIELD(int64_t, opened)       \
  FIELD(int64_t, opened_pass)  \
  FIELD(int64_t, window_start) \
  FIELD(int64_t, window_end)   \
  FIELD(int64_t, live_length)  \
  FIELD(int64_t, cache_length) \
  FIELD(int64_t, passes)       \
  FIELD(uint8_t, done)         \
  FIELD(uint8_t, failed)

#define D3LLM_READ(type, name) const type* name;
#define D3LLM_WRITTEN(type, name) type* name;
typedef struct d3llm_settings {
  D3LLM_SETTINGS(D3LLM_READ)
} d3llm_settings;

typedef struct d3llm_progress {
  D3LLM_PROGRESS(D3LLM_WRITTEN)
} d3llm_progress;
#undef D3LLM_READ
#undef D3LLM_WRITTEN

/* The packed windows of a step from the decoding state: what the forward pass and select read.
 *
 * The windows of slots[batch] follow each other in rows of the forward pass, and so do their candidates; `shifted` says
 * that row i scores position i + 1 (Dream; the first position of a window takes its own row). tokens and rows are
 * capacities. What is behind the windows is padding: token 0 at position 0, and chosen = batch * width, scored by row 0
 * at temperature 0. Slots that do not exist have no rows. Barred are the end ids of a request in the first min_tokens
 * positions behind its prompt.
 *
 *   token_ids, positions [tokens]    cu_window [batch + 1]    kv_lengths [batch]
 *   logit_rows, chosen, entropy_eps, temperature, seed, position, number, top_k, top_p [rows],
 *   barred [rows, D3LLM_END_IDS], as select and commit read them
 */
typedef struct d3llm_gather_params {
  size_t struct_size;
  d3llm_settings settings;
  d3llm_progress progress;
  const int64_t* slots;
  int64_t* token_ids;
  int64_t* positions;
  int64_t* cu_window;
  int64_t* kv_lengths;
  int64_t* logit_rows;
  int64_t* chosen;
  float* entropy_eps;
  float* temperature;
  int64_t* seed;
  int64_t* position;
  int64_t* number;
  int64_t* top_k;
  double* top_p;
  int64_t* barred;
  int64_t batch;
  int64_t num_slots;
  int64_t max_seq_len;
  int64_t width;
  int64_t tokens;
  int64_t rows;
  int32_t shifted;
} d3llm_gather_params;

D3LLM_API d3llm_status d3llm_gather(const d3llm_gather_params* params, void* stream);

/* All bookkeeping after the select of one step, for every slot in slots[batch]: what each request's algorithm accepts
 * is written, answers end at the first of their end ids, blocks open, and window and candidates of the next pass are
 * chosen.
 *
 * chosen[rows] are the candidates of the pass in ascending order as b * width + position, b indexing slots and width
 * being that of the step; batch * width stands for none. greedy, sampled, entropy, confidence, logprob and
 * greedy_logprob [rows] are select's.
 * summary [batch, 5]: done, failed, passes, window tokens and candidates of the next pass.
 */
typedef struct d3llm_commit_params {
  size_t struct_size;
  d3llm_settings settings;
  d3llm_progress progress;
  const int64_t* slots;
  const int64_t* chosen;
  const int64_t* greedy;
  const int64_t* sampled;
  const float* entropy;
  const float* confidence;
  const float* logprob;
  const float* greedy_logprob;
  int64_t* summary;
  int64_t batch;
  int64_t num_slots;
  int64_t max_seq_len;
  int64_t width;
  int64_t rows;
  int64_t mask_id;
  int32_t family; /* 0 LLaDA, 1 Dream */
} d3llm_commit_params;

D3LLM_API d3llm_status d3llm_commit(const d3llm_commit_params* params, void* stream);

/* RMSNorm with float32 statistics, after an optional residual addition.
 *
 *   sum = x + residual, rounded to dtype     (x itself where residual is NULL)
 *   out = (sum * rsqrt(mean(sum^2) + eps)), rounded to dtype, times weight
 *
 * x, residual, sum_out, out: [rows, hidden_size] contiguous; weight [hidden_size]. sum_out may be x or residual, or
 * NULL. dtype is float16 or bfloat16. out_dtype is dtype, or FP8: then out is rounded(out / *out_scale), saturated.
 */
typedef struct d3llm_rms_norm_params {
  size_t struct_size;
  const void* x;
  const void* residual;
  const void* weight;
  void* sum_out;
  void* out;
  const float* out_scale;
  int64_t rows;
  int64_t hidden_size;
  float eps;
  int32_t dtype;
  int32_t out_dtype;
} d3llm_rms_norm_params;

D3LLM_API d3llm_status d3llm_rms_norm(const d3llm_rms_norm_params* params, void* stream);

/* out = silu(gate) * up of gate_up [rows, 2 * intermediate_size]; silu in float32, rounded to dtype before the product.
 *
 * out is [rows, intermediate_size]; dtypes and out_scale as in d3llm_rms_norm_params.
 */
typedef struct d3llm_silu_mul_params {
  size_t struct_size;
  const void* gate_up;
  void* out;
  const float* out_scale;
  int64_t rows;
  int64_t intermediate_size;
  int32_t dtype;
  int32_t out_dtype;
} d3llm_silu_mul_params;

D3LLM_API d3llm_status d3llm_silu_mul(const d3llm_silu_mul_params* params, void* stream);

#ifdef __cplusplus
}
#endif

#endif
