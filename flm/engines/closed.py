"""Routes of engines that the pass-through keeps closed: what one is, and those closed at a server FLM knows no better.

The list holds what deletes, loads, replaces or creates models, changes the server or ends its work, or runs code, on
the servers people put behind an OpenAI-compatible address: SGLang (python/sglang/srt/entrypoints/http_server.py 0.5),
TabbyAPI (endpoints/core/router.py), text-generation-webui (extensions/openai), LocalAI (core/http/routes), KoboldCpp,
Xinference, and the engines FLM has dialects for, whose own files have their complete lists.

Does not know how a path is compared (`policy.closing`): a closed route counts at every depth, whatever stands before.
"""

from __future__ import annotations

from typing import Final

import msgspec


class ClosedRoute(msgspec.Struct, frozen=True):
    """A route of an engine that the pass-through keeps closed until the operator opens it.

    `path` begins with `/`; one that ends in `/*` means everything below it too. `method` `*` is any. `why` says in
    plain words what it would do (`deletes a model`).
    """

    path: str
    why: str
    method: str = "*"


CLOSED_ANYWHERE: Final = (
    ClosedRoute("/models/load", "loads, unloads or replaces a model"),
    ClosedRoute("/models/unload", "loads, unloads or replaces a model"),
    ClosedRoute("/model/load", "loads, unloads or replaces a model"),
    ClosedRoute("/model/unload", "loads, unloads or replaces a model"),
    ClosedRoute("/load_model", "loads, unloads or replaces a model"),
    ClosedRoute("/unload_model", "loads, unloads or replaces a model"),
    ClosedRoute("/v1/internal/model/*", "loads, unloads or replaces a model"),
    ClosedRoute("/model/draft/*", "loads, unloads or replaces a model"),
    ClosedRoute("/model/embedding/*", "loads, unloads or replaces a model"),
    ClosedRoute("/models/apply", "loads, unloads or replaces a model"),
    ClosedRoute("/api/v1/models/load", "loads, unloads or replaces a model"),
    ClosedRoute("/api/v1/models/unload", "loads, unloads or replaces a model"),
    ClosedRoute("/api/admin/*", "loads, unloads or replaces a model"),
    ClosedRoute("/api/pull", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/api/push", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/api/create", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/api/copy", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/api/delete", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/api/blobs/*", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/models/download", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/models/delete/*", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/v1/download", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/api/v1/models/download", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/models/galleries/*", "downloads, creates, copies or deletes a model"),
    ClosedRoute("/load_lora_adapter", "loads or unloads a LoRA adapter"),
    ClosedRoute("/unload_lora_adapter", "loads or unloads a LoRA adapter"),
    ClosedRoute("/load_lora_adapter_from_tensors", "loads or unloads a LoRA adapter"),
    ClosedRoute("/lora/load", "loads or unloads a LoRA adapter"),
    ClosedRoute("/lora/unload", "loads or unloads a LoRA adapter"),
    ClosedRoute("/v1/internal/lora/*", "loads or unloads a LoRA adapter"),
    ClosedRoute("/update_weights", "changes the model's weights"),
    ClosedRoute("/update_weights_from_disk", "changes the model's weights"),
    ClosedRoute("/update_weights_from_tensor", "changes the model's weights"),
    ClosedRoute("/update_weights_from_distributed", "changes the model's weights"),
    ClosedRoute("/update_weights_from_ipc", "changes the model's weights"),
    ClosedRoute("/init_weights_update_group", "changes the model's weights"),
    ClosedRoute("/destroy_weights_update_group", "changes the model's weights"),
    ClosedRoute("/update_weight_version", "changes the model's weights"),
    ClosedRoute("/weights_checker", "changes the model's weights"),
    ClosedRoute("/weight_checker", "changes the model's weights"),
    ClosedRoute("/shutdown", "ends or pauses the server's work"),
    ClosedRoute("/backend/shutdown", "ends or pauses the server's work"),
    ClosedRoute("/abort_request", "ends or pauses the server's work"),
    ClosedRoute("/abort_requests", "ends or pauses the server's work"),
    ClosedRoute("/api/extra/abort", "ends or pauses the server's work"),
    ClosedRoute("/pause", "ends or pauses the server's work"),
    ClosedRoute("/resume", "ends or pauses the server's work"),
    ClosedRoute("/pause_generation", "ends or pauses the server's work"),
    ClosedRoute("/continue_generation", "ends or pauses the server's work"),
    ClosedRoute("/sleep", "ends or pauses the server's work"),
    ClosedRoute("/wake_up", "ends or pauses the server's work"),
    ClosedRoute("/release_memory_occupation", "ends or pauses the server's work"),
    ClosedRoute("/resume_memory_occupation", "ends or pauses the server's work"),
    ClosedRoute("/slow_down", "ends or pauses the server's work"),
    ClosedRoute("/collective_rpc", "runs code or any method of the engine"),
    ClosedRoute("/tools", "runs code or any method of the engine"),
    ClosedRoute("/predict", "runs code or any method of the engine"),
    ClosedRoute("/set_internal_state", "runs code or any method of the engine"),
    ClosedRoute("/v1/internal/stop-generation", "runs code or any method of the engine"),
    ClosedRoute("/cors-proxy", "fetches any address in the machine's name"),
    ClosedRoute("/api/experimental/*", "fetches any address in the machine's name"),
    ClosedRoute("/flush_cache", "empties a cache"),
    ClosedRoute("/clear_hicache_storage_backend", "empties a cache"),
    ClosedRoute("/reset_prefix_cache", "empties a cache"),
    ClosedRoute("/reset_mm_cache", "empties a cache"),
    ClosedRoute("/reset_encoder_cache", "empties a cache"),
    ClosedRoute("/start_profile", "starts or stops a profiler or a recording"),
    ClosedRoute("/stop_profile", "starts or stops a profiler or a recording"),
    ClosedRoute("/start_expert_distribution_record", "starts or stops a profiler or a recording"),
    ClosedRoute("/stop_expert_distribution_record", "starts or stops a profiler or a recording"),
    ClosedRoute("/dump_expert_distribution_record", "starts or stops a profiler or a recording"),
    ClosedRoute("/configure_logging", "changes or shows the server's configuration"),
    ClosedRoute("/template/switch", "changes or shows the server's configuration"),
    ClosedRoute("/template/unload", "changes or shows the server's configuration"),
    ClosedRoute("/sampling/override/*", "changes or shows the server's configuration"),
    ClosedRoute("/server_info", "changes or shows the server's configuration"),
    ClosedRoute("/get_server_info", "changes or shows the server's configuration"),
    ClosedRoute("/slots/*", "saves, restores or erases what slots hold", "POST"),
    ClosedRoute("/lora-adapters", "changes the LoRA adapters", "POST"),
    ClosedRoute("/props", "changes the server's properties", "POST"),
    ClosedRoute("/models", "adds or starts a model", "POST"),
    ClosedRoute("/models/*", "deletes or ends a model", "DELETE"),
)
