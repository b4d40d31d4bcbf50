# d3llm_cuda_flags(RESULT): -gencode flags for D3LLM_CUDA_ARCHITECTURES, a cubin each and PTX of the newest.
set(D3LLM_ALL_ARCHITECTURES 80 86 89 90a 100 120)
set(D3LLM_CUDA_ARCHITECTURES all CACHE STRING
  "GPUs to compile for: numbers as in 80;90a, native (those of this machine), all, or auto (native, without any all)")

# Those of this machine that the kernels are for; nothing where nvidia-smi finds none.
function(d3llm_native_architectures result)
  execute_process(
    COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities RESULT_VARIABLE status ERROR_QUIET)
  set(architectures "")
  if(status EQUAL 0)
    string(REPLACE "." "" capabilities "${capabilities}")
    string(REGEX MATCHALL "[0-9]+" architectures "${capabilities}")
    list(REMOVE_DUPLICATES architectures)
    list(FILTER architectures EXCLUDE REGEX "^[0-7][0-9]$") # the kernels need 8.0
    list(SORT architectures COMPARE NATURAL)
    list(TRANSFORM architectures REPLACE "^90$" "90a") # wgmma is in 90a only
  endif()
  set(${result} ${architectures} PARENT_SCOPE)
endfunction()

function(d3llm_cuda_flags result)
  set(architectures ${D3LLM_CUDA_ARCHITECTURES})
  if(D3LLM_CUDA_ARCHITECTURES MATCHES "^(native|auto)$")
    d3llm_native_architectures(architectures)
  endif()
  if(NOT architectures AND D3LLM_CUDA_ARCHITECTURES STREQUAL "native")
    message(FATAL_ERROR
      "D3LLM_CUDA_ARCHITECTURES is native, but nvidia-smi finds no GPU from 8.0 on; name them, as in 80;90a")
  endif()
  if(NOT architectures OR architectures STREQUAL "all")
    set(architectures ${D3LLM_ALL_ARCHITECTURES})
  endif()
  if("90" IN_LIST architectures AND "90a" IN_LIST architectures)
    message(FATAL_ERROR "D3LLM_CUDA_ARCHITECTURES has both 90 and 90a; allowed: one of them, 90a for Hopper's own kernel")
  endif()
  set(flags "")
  foreach(architecture IN LISTS architectures)
    if(NOT architecture MATCHES "^[0-9]+[af]?$")
      message(FATAL_ERROR
        "D3LLM_CUDA_ARCHITECTURES has ${architecture}; allowed: numbers as in 80;90a, or native, all, auto")
    endif()
    list(APPEND flags "SHELL:-gencode arch=compute_${architecture},code=sm_${architecture}")
  endforeach()
  list(GET architectures -1 newest)
  if(newest MATCHES "^[0-9]+$") # PTX for one GPU alone, as of 90a, runs on no newer one
    list(APPEND flags "SHELL:-gencode arch=compute_${newest},code=compute_${newest}")
  endif()
  if("90a" IN_LIST architectures)
    list(APPEND flags -DD3LLM_HOPPER) # the launchers may choose the kernels that only 90a has
  endif()
  message(STATUS "GPU architectures: ${architectures}")
  set(${result} ${flags} PARENT_SCOPE)
endfunction()
