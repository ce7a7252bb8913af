"""The generator of ../shared/reference/models for adapters with DoRA, modules_to_save, a head that is tied to the embedding, and experts.

`load(PATH)` returns the module of PATH, mended in six points: PEFT trains some tensors under other names than it stores them under;
magnitudes and whole modules start near the base's, where the generator starts everything but A near 0; a tied head is untied before
it is merged, since PEFT would change the embedding with it, and its merged model would not compute what its adapter does; a merged model
has the names of the files, where each expert has matrices of its own; target_parameters, which PEFT holds as a set, are sorted; and patterns, of which PEFT takes the
first that matches but which it sorts as it saves, stay in their order.
"""
import importlib.util
import json

import torch


def lengths_of(module):
    """Of what an input adds to each output: rows of a linear layer, columns of an embedding."""
    return module.weight.detach().clone().float().norm(dim=0 if isinstance(module, torch.nn.Embedding) else 1)


def load(path):
    spec = importlib.util.spec_from_file_location("generate", path)
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    in_memory, with_start, opened, saved = generate.adapter_names, generate.add_lora, generate.load, generate.save_adapter

    def adapter_names(tensors):
        renamed = {n.replace("lora_magnitude_vector.weight", "lora_magnitude_vector").replace(".modules_to_save.", "."): t
                   for n, t in in_memory(tensors).items()}
        return {n.removesuffix(".default"): t for n, t in renamed.items()}  # an embedding's matrices

    def add_lora(model, case, gen):
        lengths = {n: lengths_of(p) for n, p in model.named_modules() if isinstance(p, (torch.nn.Linear, torch.nn.Embedding))}
        weights = {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}
        model = with_start(model, case, gen)
        with torch.no_grad():
            for name, p in model.named_parameters():
                module = name.removeprefix("base_model.model.").split(".lora_magnitude_vector")[0]
                if module != name.removeprefix("base_model.model."):
                    p.copy_(lengths[module] * (0.7 + 0.6 * torch.rand(p.shape, generator=gen)))
                if ".modules_to_save.default." in name:
                    of_base = weights[module.replace(".modules_to_save.default.", ".")]
                    p.copy_(of_base * (0.9 + 0.2 * torch.rand(p.shape, generator=gen)))
        merge = model.merge_and_unload

        def merge_untied():
            head = model.base_model.model.lm_head
            if hasattr(head, "base_layer"):
                head.base_layer.weight = torch.nn.Parameter(head.base_layer.weight.detach().clone())
            return merge()

        model.merge_and_unload = merge_untied
        return model.eval()

    def with_names_of_files(*arguments):
        model = opened(*arguments)
        fused = model.state_dict
        # PEFT and torch ask for a part of it, by arguments.
        model.state_dict = lambda *a, **k: fused(*a, **k) if a or k else generate.checkpoint_names(fused())
        return model

    def save_adapter(model, case, folder):
        saved(model, case, folder)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        config["target_parameters"] = config["target_parameters"] and sorted(config["target_parameters"])
        config.update({field: case["lora"][field] for field in ("rank_pattern", "alpha_pattern") if field in case["lora"]})
        path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")

    generate.adapter_names, generate.add_lora = adapter_names, add_lora
    generate.load, generate.save_adapter = with_names_of_files, save_adapter
    return generate
