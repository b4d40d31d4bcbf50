// C launchers of the fused elementwise kernels: checks, then the kernels.
#include "kernels/elementwise.h"

#include "checks.h"

namespace d3llm {
namespace {

constexpr int64_t kMostIntermediate = 1 << 23;

d3llm_status check_dtype(const char* launcher, int32_t dtype) {
  if (dtype == D3LLM_FLOAT16 || dtype == D3LLM_BFLOAT16) return D3LLM_SUCCESS;
  return invalid("%s: dtype is %d; allowed: %d (float16), %d (bfloat16)", launcher, dtype, D3LLM_FLOAT16,
                 D3LLM_BFLOAT16);
}

d3llm_status check_dtypes(const char* launcher, int32_t dtype, int32_t out_dtype, const float* out_scale) {
  if (auto status = check_dtype(launcher, dtype)) return status;
  if (out_dtype != dtype && out_dtype != D3LLM_FLOAT8_E4M3) {
    return invalid("%s: out_dtype is %d; allowed: dtype, %d, or %d (float8_e4m3)", launcher, out_dtype, dtype,
                   D3LLM_FLOAT8_E4M3);
  }
  if (out_dtype != D3LLM_FLOAT8_E4M3 && out_scale != nullptr) {
    return invalid("%s: out_scale is set; only out_dtype %d (float8_e4m3) takes one", launcher, D3LLM_FLOAT8_E4M3);
  }
  return D3LLM_SUCCESS;
}

template <typename Params>
d3llm_status check_output(const char* launcher, const Params& p) {
  const bool fp8 = p.out_dtype == D3LLM_FLOAT8_E4M3;
  const NamedPointer pointers[] = {{"out", p.out, fp8 ? 1u : 2u}, {"out_scale", p.out_scale, 4, fp8}};
  return check_pointers(launcher, pointers);
}

d3llm_status check(const d3llm_rms_norm_params* params) {
  constexpr const char* kName = "rms_norm";
  if (auto status = check_struct(kName, params)) return status;
  const d3llm_rms_norm_params& p = *params;
  if (auto status = check_size(kName, "rows", p.rows, 0, kMostRows)) return status;
  if (auto status = check_size(kName, "hidden_size", p.hidden_size, 1, kMostHidden)) return status;
  if (!(p.eps >= 0.f)) return invalid("%s: eps is %g; allowed: 0 or more", kName, p.eps);
  if (auto status = check_dtypes(kName, p.dtype, p.out_dtype, p.out_scale)) return status;
  if (p.rows == 0) return D3LLM_SUCCESS;
  const NamedPointer pointers[] = {
      {"x", p.x, 2}, {"residual", p.residual, 2, false}, {"weight", p.weight, 2}, {"sum_out", p.sum_out, 2, false}};
  if (auto status = check_pointers(kName, pointers)) return status;
  return check_output(kName, p);
}

d3llm_status check(const d3llm_silu_mul_params* params) {
  constexpr const char* kName = "silu_mul";
  if (auto status = check_struct(kName, params)) return status;
  const d3llm_silu_mul_params& p = *params;
  if (auto status = check_size(kName, "rows", p.rows, 0, kMostRows)) return status;
  if (auto status = check_size(kName, "intermediate_size", p.intermediate_size, 1, kMostIntermediate)) return status;
  if (auto status = check_dtypes(kName, p.dtype, p.out_dtype, p.out_scale)) return status;
  if (p.rows == 0) return D3LLM_SUCCESS;
  if (auto status = check_pointer(kName, {"gate_up", p.gate_up, 2})) return status;
  return check_output(kName, p);
}

}  // namespace
}  // namespace d3llm

extern "C" d3llm_status d3llm_rms_norm(const d3llm_rms_norm_params* params, void* stream) {
  if (auto status = d3llm::check(params)) return status;
  if (params->rows == 0) return D3LLM_SUCCESS;
  return d3llm::from_cuda("rms_norm", d3llm::launch_rms_norm(*params, static_cast<cudaStream_t>(stream)));
}

extern "C" d3llm_status d3llm_silu_mul(const d3llm_silu_mul_params* params, void* stream) {
  if (auto status = d3llm::check(params)) return status;
  if (params->rows == 0) return D3LLM_SUCCESS;
  return d3llm::from_cuda("silu_mul", d3llm::launch_silu_mul(*params, static_cast<cudaStream_t>(stream)));
}
