# D3LLM_TENSORRT_INCLUDE: the folder of NvInfer.h in TensorRT_ROOT, in the system, or of the PyPI package kernel-lens in
# D3LLM_PYTHON or out/tensorrt (`make plugins` puts it there). Only headers: nothing links against TensorRT.
find_path(D3LLM_TENSORRT_INCLUDE NvInferRuntime.h
  HINTS ${TensorRT_ROOT} $ENV{TensorRT_ROOT} PATH_SUFFIXES include
  DOC "Folder of TensorRT's headers")
find_path(D3LLM_TENSORRT_INCLUDE NvInferRuntime.h
  PATHS ${D3LLM_SITE_PACKAGES} ${CMAKE_SOURCE_DIR}/out/tensorrt PATH_SUFFIXES kernel_lens/include/tensorrt)

function(d3llm_check_tensorrt_headers)
  file(STRINGS ${D3LLM_TENSORRT_INCLUDE}/NvInferVersion.h lines REGEX "define (NV_TENSORRT|TRT)_(MAJOR|MINOR)")
  foreach(part MAJOR MINOR)
    string(REGEX MATCH "(NV_TENSORRT|TRT)_${part}(_ENTERPRISE)? ([0-9]+)" found "${lines}")
    set(${part} ${CMAKE_MATCH_3})
  endforeach()
  if("${MAJOR}.${MINOR}" VERSION_LESS 10.14)
    message(FATAL_ERROR
      "${D3LLM_TENSORRT_INCLUDE} has the headers of TensorRT ${MAJOR}.${MINOR}; 10.14 or newer is needed: "
      "set TensorRT_ROOT, or -DD3LLM_TENSORRT=OFF to build without the plugin")
  endif()
  message(STATUS "TensorRT headers: ${MAJOR}.${MINOR} in ${D3LLM_TENSORRT_INCLUDE}")
endfunction()
