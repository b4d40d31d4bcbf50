"""The commands of ``d3llm-trt``; heavy modules load inside the commands."""
