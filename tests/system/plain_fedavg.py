"""Federated averaging of LoRA updates in plain torch and peft: imports nothing of the testbed.

    python plain_fedavg.py BASE INITIAL DATA.npz OPTIONS.json OUT.npz

BASE is a Hugging Face folder, INITIAL a PEFT folder with the adapter all clients start from. DATA holds, for each
client k, input_ids_k, attention_mask_k and loss_mask_k, shape [rows, tokens]. OPTIONS gives rounds, seed, batch_size,
local_steps, optimizer, learning_rate and max_grad_norm. OUT receives the averaged adapter after the last round, one
array for each LoRA tensor.
"""

import json
import sys

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM


def lora_parameters(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def batches(rows, count, size, rng):
    """Consecutive slices of random permutations, a new permutation when one is used up."""
    order = []
    for _ in range(count):
        while len(order) < size:
            order.extend(rng.permutation(rows).tolist())
        yield order[:size]
        order = order[size:]


def client_loss(model, data, client, rows):
    ids = torch.from_numpy(data[f"input_ids_{client}"][rows]).long()
    attention = torch.from_numpy(data[f"attention_mask_{client}"][rows]).long()
    counted = torch.from_numpy(data[f"loss_mask_{client}"][rows])[:, 1:].float()
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * counted).sum() / counted.sum()


def main(base, initial, data_file, options_file, out):
    torch.set_num_threads(1)
    with open(options_file, encoding="utf-8") as file:
        options = json.load(file)
    data = np.load(data_file)
    clients = range(sum(name.startswith("input_ids_") for name in data.files))
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), initial, is_trainable=True
    )
    model.train()
    parameters = lora_parameters(model)
    published = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for round_index in range(1, options["rounds"] + 1):
        total = {name: torch.zeros_like(value) for name, value in published.items()}
        weight = 0
        for client in clients:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(published[name])
            kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[options["optimizer"]]
            optimizer = kind(parameters.values(), lr=options["learning_rate"], weight_decay=0.0)
            rng = np.random.default_rng([options["seed"], client, round_index])
            rows = len(data[f"input_ids_{client}"])
            for batch in batches(rows, options["local_steps"], options["batch_size"], rng):
                optimizer.zero_grad()
                client_loss(model, data, client, batch).backward()
                torch.nn.utils.clip_grad_norm_(parameters.values(), options["max_grad_norm"])
                optimizer.step()
            weight += rows
            for name, parameter in parameters.items():
                total[name] += rows * (parameter.detach() - published[name])
        published = {name: published[name] + total[name] / weight for name in published}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(published[name])
    np.savez(out, **{name: value.numpy() for name, value in get_peft_model_state_dict(model).items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
