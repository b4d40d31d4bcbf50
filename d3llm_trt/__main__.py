"""``python -m d3llm_trt`` is the command ``d3llm-trt``."""

from d3llm_trt.cli.main import main

if __name__ == "__main__":
    main()
