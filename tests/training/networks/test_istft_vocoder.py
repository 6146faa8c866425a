"""The light vocoder: as many samples as frames times the hop, and an inverse that is one."""

import torch

from training.networks.istft_vocoder import IstftVocoder


def test_a_clip_has_the_length_of_its_frames() -> None:
    wav = IstftVocoder(num_mels=64, width=16, num_layers=2)(torch.randn(2, 64, 10)).sample
    assert wav.shape == (2, 1, 1600) and torch.isfinite(wav).all()


def test_the_inverse_gives_back_what_was_transformed() -> None:
    vocoder = IstftVocoder(num_mels=8, width=8, num_layers=1, fft_size=512, hop_size=128)
    wav = torch.randn(2, 20 * 128)
    edge = (512 - 128) // 2
    padded = torch.nn.functional.pad(wav[:, None], (edge, edge), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, 512, 128, window=torch.hann_window(512), center=False, return_complex=True)
    inverse = vocoder._inverse_stft(spectrum)
    assert torch.allclose(inverse, wav, atol=1e-4)


def test_it_learns_a_tone() -> None:
    torch.manual_seed(0)
    vocoder = IstftVocoder(num_mels=4, width=16, num_layers=1, fft_size=256, hop_size=64)
    tone = 0.5 * torch.sin(torch.arange(16 * 64) * 0.2)[None, None]
    optimizer = torch.optim.Adam(vocoder.parameters(), lr=1e-2)
    log_mel = torch.randn(1, 4, 16)
    errors = []
    for _ in range(60):
        error = (vocoder(log_mel).sample - tone).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.2 * errors[0]


def test_a_tone_of_full_scale_is_within_reach() -> None:
    vocoder = IstftVocoder(num_mels=4, width=8, num_layers=1, fft_size=1024, hop_size=160)
    tone = torch.sin(2 * torch.pi * 32 * torch.arange(1024) / 1024)
    spectrum = torch.fft.rfft(tone * vocoder.window)
    vocoder.head.weight.data.zero_()
    # every frame alike: as much in the tone's bin as a window of it has
    vocoder.head.bias.data = torch.cat([spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()])
    frame = vocoder(torch.zeros(1, 4, 1)).sample
    assert frame.abs().max() > 0.95
