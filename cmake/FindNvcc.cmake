# Sets CMAKE_CUDA_COMPILER before the language is enabled: CUDACXX, PATH, /usr/local/cuda, or the compiler from PyPI
# (nvidia-cuda-nvcc and what it needs) in the site-packages of D3LLM_PYTHON, or in out/cuda (by `make plugins`).
find_program(D3LLM_PYTHON NAMES python3 python DOC "Python whose site-packages are searched for nvcc and for headers")
set(D3LLM_SITE_PACKAGES "")
if(D3LLM_PYTHON)
  execute_process(
    COMMAND ${D3LLM_PYTHON} -c "import sysconfig; print(sysconfig.get_path('purelib'), end='')"
    OUTPUT_VARIABLE D3LLM_SITE_PACKAGES)
endif()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  file(GLOB pypi_toolkits ${D3LLM_SITE_PACKAGES}/nvidia/cu[0-9]* ${CMAKE_SOURCE_DIR}/out/cuda/nvidia/cu[0-9]*)
  list(TRANSFORM pypi_toolkits APPEND /bin OUTPUT_VARIABLE pypi_folders)
  find_program(D3LLM_NVCC nvcc PATHS /usr/local/cuda/bin ${pypi_folders})
  if(NOT D3LLM_NVCC)
    message(FATAL_ERROR
      "no nvcc: the CUDA kernels need it (the Python package does not). Set CUDACXX, or install a compiler: "
      "pip install nvidia-cuda-nvcc==13.0.* nvidia-nvvm==13.0.* nvidia-cuda-crt==13.0.* nvidia-cuda-runtime==13.0.* "
      "nvidia-cuda-cccl==13.0.*")
  endif()
  set(CMAKE_CUDA_COMPILER ${D3LLM_NVCC} CACHE FILEPATH "The CUDA compiler")
endif()

# The PyPI toolkit has lib where nvcc's own profile looks for lib64.
if(CMAKE_CUDA_COMPILER MATCHES "^(.*/nvidia/cu[0-9]+)/bin/nvcc$")
  set(CMAKE_CUDA_FLAGS_INIT "-L${CMAKE_MATCH_1}/lib")
endif()
