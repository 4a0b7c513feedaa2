"""Metrics of inference engines, their caches and GPUs, read from Prometheus pages.

`fetch` brings a page, `exposition` reads it, `growth` compares it with the one before; `vllm`,
`sglang`, `lmcache` and `dcgm` say which metric is which field, `page_reader` which of them a page
is about. What a page does not have is null, never zero.
"""
