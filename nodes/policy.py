"""The model as a policy: samples of responses, the likelihood of their tokens, and its distance from another policy."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from nodes.adapters import FlatAdapter
from nodes.tokens import Batch, Encoded, collate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def holding(adapter: FlatAdapter, vector: np.ndarray) -> Iterator[None]:
    """Let the model compute with another flat adapter for a while, then with the one it had.

    Args:
        adapter: of the model.
        vector: flat adapter for the while, shape [layout.size].
    """
    kept = adapter.values.clone()
    adapter.write(vector)
    try:
        yield
    finally:
        adapter.values.copy_(kept)


@dataclass(frozen=True)
class TokenScores:
    """Log-likelihoods of response tokens.

    Attributes:
        values: log pi of each token, 0 where there is none, shape [num_rows, num_positions].
        counts: where there is a token, shape [num_rows, num_positions] bool.
    """

    values: torch.Tensor
    counts: torch.Tensor

    @property
    def sums(self) -> torch.Tensor:
        """log pi(y | x) of each response, shape [num_rows]."""
        return self.values.sum(-1)


@dataclass(frozen=True)
class Policy:
    """pi(y | x) of a causal language model with its flat adapter.

    Attributes:
        adapter: the model and its trained values.
        tokenizer: of the base model, with a pad token.
        logit_scale: inverse temperature: the logits are multiplied by it, in samples and in likelihoods alike.
    """

    adapter: FlatAdapter
    tokenizer: PreTrainedTokenizerBase
    logit_scale: float = 1.0

    def text(self, response: np.ndarray) -> str:
        """The words of a response without its marks.

        Args:
            response: token ids, shape [num_tokens] int64.
        """
        return str(self.tokenizer.decode(response.tolist(), skip_special_tokens=True))

    @torch.no_grad()
    def sample(self, prompts: Sequence[np.ndarray], max_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
        """One response to each prompt, drawn token by token by inverse distribution function.

        All uniform numbers are drawn before the first token, so that the generator moves on by the same amount
        whatever the model says, and two policies can be compared on common random numbers.

        Args:
            prompts: token ids, each of shape [num_tokens] int64.
            max_tokens: most tokens of a response; the end mark counts.
            rng: draws the uniform numbers.

        Returns:
            Token ids of each response with its end mark if it came, each of shape [num_tokens] int64.
        """
        from transformers import DynamicCache

        model, device = self.adapter.model, self.adapter.values.device
        pad, end = int(self.tokenizer.pad_token_id), self.tokenizer.eos_token_id
        uniform = torch.from_numpy(rng.random((max_tokens, len(prompts)))).to(device)
        inputs, attention = (torch.from_numpy(array).to(device) for array in _left_padded(prompts, pad))
        keep = {"logits_to_keep": 1} if self._picks_logits else {}
        cache = DynamicCache()
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        drawn: list[torch.Tensor] = []
        for step in range(max_tokens):
            places = (attention.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
            logits = model(
                input_ids=inputs,
                attention_mask=attention,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                **keep,
            ).logits[:, -1]
            token = torch.where(ended, pad, self._draw(logits, uniform[step]))
            drawn.append(torch.where(ended, -1, token))
            if end is not None:
                ended = ended | (token == end)
            if bool(ended.all()):
                break
            inputs, attention = token[:, None], torch.cat([attention, torch.ones_like(token)[:, None]], 1)
        responses = torch.stack(drawn, 1).cpu().numpy()
        return [response[response >= 0] for response in responses]

    def log_probs(self, rows: Sequence[Encoded]) -> TokenScores:
        """Log-likelihood of every response token; gradients flow to the adapter's values.

        Args:
            rows: prompts with their responses.
        """
        batch = collate(rows, pad=int(self.tokenizer.pad_token_id), loss_on="response")
        logits, targets, counts = self._logits(batch)
        chosen = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        return TokenScores(torch.where(counts, chosen, 0.0), counts)

    @torch.no_grad()
    def divergence(self, rows: Sequence[Encoded], reference: np.ndarray) -> np.ndarray:
        """KL divergence from a reference policy along each response.

            sum_t sum_v pi(v | x, y_<t) log( pi(v | x, y_<t) / pi_ref(v | x, y_<t) )

        Its mean over responses drawn from pi is an estimate of KL(pi || pi_ref) without bias and, unlike the mean of
        log pi / pi_ref, never negative.

        Args:
            rows: prompts with responses drawn from the policy.
            reference: flat adapter of pi_ref, shape [layout.size].

        Returns:
            Nats a response, shape [num_rows] float64.
        """
        batch = collate(rows, pad=int(self.tokenizer.pad_token_id), loss_on="response")
        own = self._logits(batch)[0].log_softmax(-1)
        with holding(self.adapter, reference):
            other, _, counts = self._logits(batch)
        each = (own.exp() * (own - other.log_softmax(-1))).sum(-1)
        return torch.where(counts, each, 0.0).sum(-1).double().cpu().numpy()

    @property
    def _picks_logits(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.adapter.model.get_base_model().forward).parameters

    def _draw(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        cumulative = (logits.double() * self.logit_scale).softmax(-1).cumsum(-1)
        token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
        return token.clamp(max=logits.shape[-1] - 1)

    def _logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [num_rows, num_positions, vocabulary], the tokens they predict, and which of these count."""
        device = self.adapter.values.device
        counts = batch.loss_mask[:, 1:]
        # positions from which some row predicts a response token; the others need no logits
        positions = np.flatnonzero(counts.any(axis=0))
        where = torch.from_numpy(positions).to(device)
        keep = {"logits_to_keep": where} if self._picks_logits else {}
        logits = self.adapter.model(
            input_ids=torch.from_numpy(batch.input_ids).to(device),
            attention_mask=torch.from_numpy(batch.attention_mask).to(device),
            **keep,
        ).logits
        logits = (logits if self._picks_logits else logits[:, where]).float() * self.logit_scale
        targets = torch.from_numpy(batch.input_ids[:, 1:][:, positions]).to(device)
        return logits, targets, torch.from_numpy(counts[:, positions]).to(device)


def _left_padded(prompts: Sequence[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask, both [num_rows, length] int64, the prompts' ends in the last column."""
    length = max(map(len, prompts))
    ids = np.full((len(prompts), length), pad, np.int64)
    attention = np.zeros((len(prompts), length), np.int64)
    for index, prompt in enumerate(prompts):
        ids[index, length - len(prompt) :] = prompt
        attention[index, length - len(prompt) :] = 1
    return ids, attention
