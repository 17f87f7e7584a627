"""Small networks of most families, and what is known to be missed in them."""

from __future__ import annotations

import timm
from timm.layers import BlurPool2d, GluMlp, GroupNorm1, GroupNormAct, StdConv2d
from timm.models import (
    cait,
    convmixer,
    cspnet,
    focalnet,
    gcvit,
    ghostnet,
    hgnet,
    metaformer,
    mlp_mixer,
    mvitv2,
    nest,
    nfnet,
    regnet,
    repghost,
    res2net,
    resnest,
    resnet,
    selecsls,
    sknet,
    tresnet,
    volo,
    vovnet,
    xception_aligned,
)
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.byobnet import ByoBlockCfg as Block
from timm.models.byobnet import ByobNet, ByoModelCfg
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnetv2 import ResNetV2
from timm.models.vgg import VGG
from torch import nn

CLASSES = {"num_classes": 7}


def named(name, pixels, **arguments):
    """A timm model with small arguments; those of a fixed input size are told it."""
    return lambda: timm.create_model(name, **CLASSES, **arguments), pixels


def made(kind, pixels, *arguments, **options):
    return lambda: kind(*arguments, **CLASSES, **options), pixels


def byobnet(*blocks, pixels=64, img_size=None, **settings):
    return lambda: ByobNet(ByoModelCfg(blocks, **{"stem_chs": 8, **settings}), img_size=img_size, **CLASSES), pixels


def efficientnet(*blocks, kind=EfficientNet):
    arguments = {"num_features": 16, "stem_size": 8}
    return lambda: kind(decode_arch_def([[block] for block in blocks]), **arguments, **CLASSES), 64


def resnet_of(block=resnet.Bottleneck, **options):
    return made(resnet.ResNet, 64, block, layers=(1, 1, 0, 0), channels=(8, 16, 16, 16), stem_width=8, **options)


def csp(stem, **stages):
    stages = {"depth": (1, 1), "out_chs": (8, 16), "stride": 2, **stages}
    config = cspnet.CspModelCfg(cspnet.CspStemCfg(**stem), cspnet.CspStagesCfg(**stages))
    return made(cspnet.CspNet, 64, config)


def mixer(**options):
    return made(mlp_mixer.MlpMixer, 64, img_size=64, patch_size=16, embed_dim=16, num_blocks=2, **options)


def former(**options):
    options = {"depths": (1, 1), "dims": (8, 16), "res_scale_init_values": (None, 1.0), **options}
    return made(metaformer.MetaFormer, 64, **options)


def nf(**options):
    return made(nfnet.NormFreeNet, 64, nfnet.NfCfg(depths=(1, 1), channels=(16, 32), stem_chs=8, **options))


def reg(**options):
    config = regnet.RegNetCfg(depth=5, w0=8, wa=8.0, wm=1.5, group_size=4, stem_width=8, **options)
    return made(regnet.RegNet, 64, config)


def mvit(**options):
    config = mvitv2.MultiScaleVitCfg(depths=(1, 1), embed_dim=(12, 24), num_heads=(1, 2), mlp_ratio=2.0, **options)
    return made(mvitv2.MultiScaleVit, 64, config, img_size=(64, 64))


def vovnet_of(depths, attention, *, depthwise):
    config = {"stem_chs": [8, 8, 8], "stage_conv_chs": [8] * 4, "stage_out_chs": [16] * 4, "layer_per_block": 2}
    config |= {"block_per_stage": depths, "residual": True, "depthwise": depthwise, "attn": attention}
    return made(vovnet.VovNet, 64, config)


def hgnet_of(stem, channels, **options):
    stages = {"stage1": [8, 8, 16, 1, False, False, 3, 2], "stage2": [16, 8, 16, 2, True, False, 3, 2]}
    stages |= {"stage3": [16, 8, 16, 1, True, True, 3, 2], "stage4": [16, 8, 16, 1, True, False, 3, 2]}
    config = {"stem_type": stem, "stem_chs": channels, **stages}
    return made(hgnet.HighPerfGpuNet, 64, config, head_hidden_size=16, **options)


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
FOUR = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 2, 2, 4)}
SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (3, 3)}
DIMS = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
ATTENTION = (Block("bottle", 1, 16, 1, 0, 0.5), Block("self_attn", 1, 32, 1, 0, 0.5))
PLAIN = (Block("bottle", 1, 16, 1, 0, 0.5), Block("bottle", 1, 32, 2, 0, 0.5))
INVERTED = {"block_kwargs": {"bottle_in": True, "linear_out": True}}
TIERED = {"stem_type": "tiered"}
GHOST = [[[3, 16, 8, 0, 1]], [[3, 16, 8, 0.25, 2]], [[3, 24, 16, 0, 2]]]

NETWORKS = {
    "test_efficientnet": named("test_efficientnet", 64),
    "test_efficientnet_gn": named("test_efficientnet_gn", 64),
    "test_efficientnet_ln": named("test_efficientnet_ln", 64),
    "test_resnet": named("test_resnet", 64),
    "test_vit": named("test_vit", 32, img_size=32),
    "beit": named("beit_base_patch16_224", 32, init_values=1e-5, **VIT),
    "deit3": named("deit3_small_patch16_224", 32, **VIT),
    "deit, distilled": named("deit_tiny_distilled_patch16_224", 32, **VIT),
    "vit, qk norm": named("vit_tiny_patch16_224", 32, qk_norm=True, **VIT),
    "vit, registers, layer scale": named("vit_small_patch16_224", 32, reg_tokens=2, init_values=1e-5, **VIT),
    "vit, attention pooling": named("vit_base_patch16_siglip_224", 32, **VIT),
    "vit, parallel blocks": named("vit_small_patch16_18x2_224", 32, **VIT),
    "sam": named("samvit_base_patch16_224", 32, window_size=2, global_attn_indexes=(1,), neck_chans=16, **VIT),
    "eva, rope": named(
        "eva02_tiny_patch14_224", 28, img_size=28, patch_size=7, embed_dim=24, depth=2, num_heads=3
    ),
    "dinov3": named("vit_small_patch16_dinov3", 32, **VIT),
    "eva, trained rope": named(
        "vit_small_patch16_rope_mixed_224", 32, **VIT | {"depth": 1}
    ),
    "convit": named("convit_tiny", 32, local_up_to_layer=1, **VIT),
    "cait": made(
        cait.Cait, 32, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, depth_token_only=1
    ),
    "tnt": named("tnt_s_patch16_224", 32, img_size=32, embed_dim=24, inner_dim=8, depth=2, num_heads_inner=2,
                 num_heads_outer=3),
    "volo": made(volo.VOLO, 32, layers=[1, 1], img_size=32, patch_size=8, embed_dims=(12, 24), num_heads=(3, 3),
                 stem_hidden_dim=8, downsamples=(True, False), outlook_attention=(True, False), mlp_ratio=2.0),
    "swin": named("swin_tiny_patch4_window7_224", 64, **SWIN),
    "nest": made(nest.Nest, 32, img_size=32, patch_size=4, num_levels=2, embed_dims=(12, 24), num_heads=(3, 3),
                 depths=(1, 1)),
    "pit": named("pit_ti_224", 64, img_size=64, stride=8, base_dims=(8, 8), depth=(1, 1), heads=(2, 4)),
    "twins": named("twins_pcpvt_small", 64, img_size=64, **FOUR),
    "hiera": named("hiera_tiny_224", 64, img_size=(64, 64), embed_dim=12, num_heads=1, stages=(1, 1, 1, 1)),
    "levit": named("levit_128s", 64, img_size=64, embed_dim=(16, 32), key_dim=4, depth=(1, 1), num_heads=(2, 2)),
    "tiny_vit": named("tiny_vit_5m_224", 64, embed_dims=(8, 12, 12), depths=(1, 1, 1), num_heads=(2, 3, 3),
                      window_sizes=(4, 4, 4)),
    "coatnet": named("coatnet_pico_rw_224", 64, img_size=64, embed_dim=(16, 32), depths=(1, 1),
                     block_type=("C", "T"), stem_width=8, transformer_dim_head=8),
    "mixer": mixer(),
    "gmlp": mixer(mlp_ratio=4, block_layer=mlp_mixer.SpatialGatingBlock, mlp_layer=mlp_mixer.GatedMlp),
    "resmlp": mixer(mlp_ratio=4, block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine),
    "gmixer": mixer(mlp_ratio=(1.0, 4.0), mlp_layer=GluMlp, act_layer=nn.SiLU),
    "poolformer": former(norm_layers=GroupNorm1, mlp_act=nn.GELU, mlp_bias=True, layer_scale_init_values=1e-5,
                         downsample_norm=None, use_mlp_head=False),
    "convformer": former(token_mixers=metaformer.SepConv),
    "caformer": former(dims=(16, 64), token_mixers=[metaformer.SepConv, metaformer.Attention],
                       norm_layers=[metaformer.LayerNorm2dNoBias, metaformer.LayerNormNoBias]),
    "convmixer": made(convmixer.ConvMixer, 56, dim=16, depth=2, kernel_size=3),
    "convnext, rms norm": named("convnext_zepto_rms", 96, **DIMS),
    "convnextv2": named("convnextv2_atto", 96, **DIMS),
    "focalnet": made(focalnet.FocalNet, 64, embed_dim=8, depths=(1, 1), focal_levels=(2, 2), focal_windows=(3, 3)),
    "fasternet": named("fasternet_t0", 64, embed_dim=8, depths=(1, 1, 1), feature_dim=16),
    "starnet": named("starnet_s1", 64, base_dim=8, depths=[1, 1]),
    "rdnet": named("rdnet_tiny", 64, growth_rates=(8, 8), num_blocks_list=(1, 1), block_type=("Block", "BlockESE"),
                   is_downsample_block=(None, True), num_init_features=16),
    "mobilenetv2": efficientnet("ds_r1_k3_s1_e1_c8", "er_r1_k3_s2_e2_c8", "ir_r2_k3_s2_e2_c16_se0.25"),
    "mobilenetv3": efficientnet(
        "ds_r1_k3_s2_e1_c8", "ir_r2_k3_s2_e2_c16_se0.25", "cn_r1_k1_s1_c24", kind=MobileNetV3
    ),
    "mobilenetv4": efficientnet(
        "uir_r1_a3_k3_s2_e2_c16", "uir_r1_a0_k3_s1_e2_c16", "mqa_r1_k3_h2_s1_v2_d4_c16", "cn_r1_k1_s1_c16"
    ),
    "mixnet": efficientnet("ds_r1_k3_s1_e1_c8", "ir_r1_k3.5_a1.1_p1.1_s2_e2_c16_se0.5"),
    "condconv": efficientnet("ds_r1_k3_s1_e1_c8", "ir_r1_k3_s2_e2_c16_cc4"),
    "vgg": made(VGG, 64, [8, "M", 16, "M"], mlp_ratio=0.01),
    "resnet, bottleneck": resnet_of(),
    "resnet, blur": resnet_of(resnet.BasicBlock, stem_type="deep", avg_down=True, aa_layer=BlurPool2d),
    "resnext": resnet_of(cardinality=4, base_width=32),
    "seresnet": resnet_of(block_args={"attn_layer": "se"}),
    "sknet": resnet_of(
        sknet.SelectiveKernelBasic, block_args={"sk_kwargs": {"rd_ratio": 0.5, "rd_divisor": 4, "split_input": True}}
    ),
    "resnetv2": named("resnetv2_18", 64, layers=[1, 1], channels=[32, 32], stem_chs=8),
    "nfnet": nf(group_size=4, stem_type="deep_quad", extra_conv=True, attn_layer="se", attn_kwargs={"rd_ratio": 0.5},
                same_padding=True, skipinit=True),
    "nf_regnet": nf(group_size=4, bottle_ratio=2.0, reg=True, attn_layer="se", attn_kwargs={"rd_ratio": 0.5},
                    num_features=24),
    "nf_resnet": nf(stem_type="7x7_pool"),
    "cspresnext": csp({"out_chs": 8}, out_chs=(16, 32), stride=(1, 2), groups=4, block_ratio=0.5, cross_linear=True),
    "cspdarknet": csp({"out_chs": 8, "stride": 1}, expand_ratio=(2.0, 1.0), bottle_ratio=0.5, block_ratio=(1.0, 0.5),
                      down_growth=True, block_type="dark"),
    "darknet": csp({"out_chs": 8, "stride": 1}, bottle_ratio=0.5, stage_type="dark", block_type="dark",
                   attn_layer="se"),
    "cs3darknet": csp({"out_chs": (4, 8)}, block_ratio=0.5, stage_type="cs3", block_type="edge"),
    "gernet": byobnet(Block("basic", 1, 8, 2, 0, 1), Block("bottle", 1, 16, 2, 0, 0.5), Block("bottle", 1, 16, 2, 1, 3),
                      stem_pool=None, num_features=24),
    "gcresnet": byobnet(*PLAIN, attn_layer="gca", **TIERED),
    "clip resnet": byobnet(PLAIN[0], Block("bottle", 1, 128, 2, 0, 0.125), head_type="attn_abs", fixed_input_size=True,
                           head_hidden_size=64, img_size=64, downsample="avg", **TIERED),
    "mobilevit": byobnet(
        Block("bottle", 1, 8, 2, 1, 2.0, **INVERTED),
        (Block("bottle", 1, 16, 2, 1, 2.0, **INVERTED),
         Block("mobilevit", 1, 16, 1, block_kwargs={"transformer_dim": 12, "transformer_depth": 1, "num_heads": 3,
                                                    "patch_size": 2})),
        stem_pool="", downsample="", num_features=16,
    ),
    "mobilevitv2": byobnet(
        Block("bottle", 1, 8, 2, 1, 2.0, **INVERTED),
        (Block("bottle", 1, 16, 2, 1, 2.0, **INVERTED),
         Block("mobilevit2", 1, 16, 1, br=0.5, gs=1, block_kwargs={"transformer_depth": 1, "patch_size": 2})),
        stem_pool="", downsample="",
    ),
    "halonet": byobnet(*ATTENTION, self_attn_layer="halo",
                       self_attn_kwargs={"block_size": 8, "halo_size": 2, "num_heads": 2}, **TIERED),
    "lambda": byobnet(*ATTENTION, self_attn_layer="lambda",
                      self_attn_kwargs={"r": 5, "num_heads": 2, "dim_head": 4}, **TIERED),
}  # fmt: skip

SLOW = {
    "test_efficientnet_evos": named("test_efficientnet_evos", 64),
    "tresnet": made(tresnet.TResNet, 64, layers=[1, 1, 1, 1], width_factor=0.125),
    "selecsls": made(selecsls.SelecSls, 64, {
        "block": selecsls.SelecSlsBlock, "features": [(32, 0, 8, 16, True, 2), (16, 16, 8, 16, False, 1)],
        "head": [(16, 24, 3, 2)], "num_features": 24, "feature_info": [],
    }),
    "res2net": resnet_of(res2net.Bottle2neck, base_width=32, block_args={"scale": 4}),
    "test_byobnet": named("test_byobnet", 64),
    "test_coatnet": named("test_coatnet", 64, img_size=64),
    "test_convnext": named("test_convnext", 96),
    "test_convnext2": named("test_convnext2", 96),
    "test_convnext3": named("test_convnext3", 96),
    "test_mambaout": named("test_mambaout", 96),
    "test_maxvit": named("test_maxvit", 64, img_size=64),
    "test_nfnet": named("test_nfnet", 64),
    "test_vit2": named("test_vit2", 32, img_size=32),
    "test_vit3": named("test_vit3", 32, img_size=32),
    "test_vit4": named("test_vit4", 32, img_size=32),
    "test_vit_relpos": named("test_vit_relpos", 32, img_size=32),
    "botnet": byobnet(*ATTENTION, fixed_input_size=True, self_attn_layer="bottleneck",
                      self_attn_kwargs={"num_heads": 2}, img_size=64, **TIERED),
    "haloregnetz": byobnet(
        Block("bottle", 1, 8, 2, 4, 3), Block("self_attn", 1, 16, 2, 4, 3), stem_pool="", downsample="",
        num_features=24, attn_layer="se", self_attn_layer="halo", **INVERTED,
        self_attn_kwargs={"block_size": 4, "halo_size": 1, "dim_head": 4, "qk_ratio": 0.5},
    ),
    "repvgg": byobnet(*(Block("rep", 2, channels, 2) for channels in (8, 12, 16)), stem_type="rep"),
    "repvgg, grouped": byobnet(*(Block("rep", 2, channels, 2, gs=4) for channels in (8, 16)), stem_type="rep"),
    "mobileone": byobnet(*(Block("one", 1, channels, 2, gs=1, block_kwargs={"num_conv_branches": 2})
                           for channels in (8, 12)), stem_type="one", attn_layer="se"),
    "eca resnet": byobnet(*PLAIN, attn_layer="eca", **TIERED),
    "bat resnext": byobnet(Block("bottle", 1, 32, 1, 8, 0.5), Block("bottle", 1, 32, 1, 8, 0.5), attn_layer="bat",
                           attn_kwargs={"block_size": 4}, **TIERED),
    "cbam": byobnet(*PLAIN, attn_layer="cbam"),
    "non-local": byobnet(*PLAIN, attn_layer="nl"),
    "resnest": resnet_of(resnest.ResNestBottleneck, stem_type="deep", avg_down=True, base_width=64, cardinality=1,
                         block_args={"radix": 2, "avd": True, "avd_first": False}),
    "skresnext": resnet_of(
        sknet.SelectiveKernelBottleneck, cardinality=4, base_width=32,
        block_args={"sk_kwargs": {"rd_ratio": 0.5, "rd_divisor": 4, "split_input": False}},
    ),
    "res2next": resnet_of(res2net.Bottle2neck, base_width=16, cardinality=2, block_args={"scale": 4}),
    "resnetv2, group norm": made(
        ResNetV2, 64, layers=[1, 1], channels=[64, 128], stem_chs=32, stem_type="fixed", conv_layer=StdConv2d,
        norm_layer=lambda channels, **options: GroupNormAct(channels, num_groups=8, **options),
    ),
    "regnetx": reg(),
    "regnety": reg(se_ratio=0.25),
    "regnetv": reg(preact=True),
    "regnetz": reg(bottle_ratio=2.0, se_ratio=0.25, downsample=None, linear_out=True, num_features=16),
    "densenet": named("densenet121", 64, growth_rate=8, block_config=(2, 2)),
    "dla": named("dla46_c", 64, channels=(8, 8, 8, 8, 16, 16), levels=(1, 1, 1, 2, 1, 1)),
    "dpn": named("dpn48b", 64, k_r=16, groups=4, k_sec=(1, 1, 1, 1), inc_sec=(4, 4, 4, 4), num_init_features=8),
    "vovnet": vovnet_of([1, 2, 1, 1], "ese", depthwise=False),
    "vovnet, depthwise": vovnet_of([1, 1, 1, 1], "ese", depthwise=True),
    "hgnet": hgnet_of("v1", [8, 8, 8]),
    "hgnetv2": hgnet_of("v2", [8, 8], use_lab=True),
    "xception": made(xception_aligned.XceptionAligned, 64, [
        {"in_chs": 64, "out_chs": 16, "stride": 2},
        {"in_chs": 16, "out_chs": (16, 24, 24), "stride": 1, "start_with_relu": False, "no_skip": True},
    ]),
    **{f"ghostnet {version}": made(ghostnet.GhostNet, 64, GHOST, version=version, width=0.5)
       for version in ("v1", "v2", "v3")},
    "repghost": made(repghost.RepGhostNet, 64, GHOST, width=0.5),
    "rexnet": named("rexnet_100", 64, initial_chs=8, final_chs=24, width_mult=0.5, depth_mult=0.5),
    "lcnetv2": named("lcnetv2_base", 64, scale=0.25, depths=(1, 1, 2, 1), head_hidden_size=16),
    "inception_next": named("inception_next_atto", 128, depths=(1, 1, 1, 1), dims=(16, 16, 32, 32)),
    "edgenext": named("edgenext_xx_small", 64, dims=(8, 16, 16, 24), depths=(1, 1, 2, 2), heads=(2, 2, 2, 2),
                      kernel_sizes=(3, 3, 3, 3), global_block_counts=(0, 1, 1, 1)),
    "csatv2": named("csatv2", 448, dims=(8, 8, 16, 16), depths=(1, 1, 2, 2), transformer_depths=(0, 0, 1, 1)),
    "cspnext": named("cspnext_s", 64, depths=(1, 1, 1, 1), channels=(16, 16, 32, 32), deepen_factor=1.0,
                     widen_factor=1.0),
    "swinv2": named("swinv2_tiny_window8_256", 64, **SWIN),
    "swinv2_cr": named("swinv2_cr_tiny_224", 64, **SWIN),
    "maxvit": named("maxvit_rmlp_pico_rw_256", 64, img_size=64, embed_dim=(16, 32), depths=(1, 1), stem_width=8,
                    conv_expand_ratio=2.0, transformer_dim_head=8),
    "davit": named("davit_tiny", 64, depths=(1, 1), embed_dims=(12, 24), num_heads=(3, 3), window_size=4),
    "hieradet": named("hieradet_small", 64, embed_dim=12, stages=(1, 2, 2, 1), global_att_blocks=(2,),
                      window_spec=(4, 4, 4, 2), global_pos_size=(4, 4)),
    "mvitv2": mvit(),
    "mvitv2, class token": mvit(use_cls_token=True),
    "pvt_v2": named("pvt_v2_b0", 64, **FOUR),
    "pvt_v2, linear": named("pvt_v2_b2_li", 64, **FOUR),
    "twins, svt": named("twins_svt_small", 64, img_size=64, **FOUR | {"depths": (2, 2, 2, 1)}, wss=[4, 4, 2, 2]),
    "visformer": named("visformer_tiny", 64, img_size=64, patch_size=8, init_channels=8, embed_dim=32,
                       depth=(1, 1, 1), num_heads=2, group=4),
    "xcit": named("xcit_nano_12_p8_224", 64, img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=4),
    "efficientformer": named("efficientformer_l1", 224, depths=(1, 1, 1, 2), embed_dims=(8, 8, 16, 16), num_vit=1),
    "efficientformerv2": named("efficientformerv2_s0", 128, img_size=128, depths=(1, 1, 2, 2), num_vit=1,
                               embed_dims=(8, 8, 16, 16), mlp_ratios=(2, 2, (2, 2), (2, 2))),
    "efficientvim": named("efficientvim_m1", 128, embed_dim=(16, 16, 32), depths=(1, 1, 1)),
    "efficientvit": named("efficientvit_b0", 64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), head_dim=8,
                          head_widths=(16, 24)),
    "efficientvit, msra": named("efficientvit_m0", 128, img_size=128, embed_dim=(16, 32, 32), key_dim=(4, 4, 4),
                                depth=(1, 1, 1), num_heads=(2, 2, 2), window_size=(4, 4, 4)),
    "iformer": named("iformer_t", 128, dims=(8, 16, 16, 32), depths=(1, 1, 3, 3), attn_groups=(0, 0, 1, 1)),
    "lowformer": named("lowformer_b0", 128, width_list=(8, 8, 16, 16, 16), depth_list=(0, 1, 1, 1, 1),
                       head_widths=(16, 24)),
    "cpubone": named("cpubone_b0_bfrobust", 64, width_list=(8, 8, 16, 16), depth_list=(0, 1, 1, 1),
                     head_widths=(16, 24)),
    "shvit": named("shvit_s1", 128, embed_dim=(16, 32, 32), partial_dim=(4, 8, 8), qk_dim=(4, 4, 4),
                   depth=(1, 1, 1), types=("i", "s", "s")),
    "swiftformer": named("swiftformer_xs", 128, layers=[1, 1, 1, 1], embed_dims=[8, 8, 16, 16]),
    "repvit": named("repvit_m1", 64, img_size=64, embed_dim=(8, 16), depth=(1, 1)),
    "fastvit": named("fastvit_t8", 64, layers=(1, 1), embed_dims=(4, 8), mlp_ratios=(2, 2), downsamples=(False, True),
                     token_mixers=("repmixer", "repmixer"), pos_embs=(None, None), se_downsamples=(False, False)),
    "gcvit": made(gcvit.GlobalContextVit, 64, img_size=64, window_ratio=None, window_size=(4, 4), embed_dim=8,
                  depths=(2, 2), num_heads=(2, 2)),
    "coat": named("coat_lite_tiny", 128, img_size=128, embed_dims=(16, 16, 16, 16), serial_depths=(1, 1, 1, 1),
                  num_heads=8, mlp_ratios=(1, 1, 1, 1)),
    "crossvit": named("crossvit_15_240", 48, img_size=48, img_scale=(1.0, 1.0), patch_size=(8, 16),
                      embed_dim=(12, 24), depth=((1, 1, 0),), num_heads=(3, 3), mlp_ratio=(2, 2, 1)),
    "sequencer": named("sequencer2d_s", 28, img_size=28, layers=(1,), patch_sizes=(7,), embed_dims=(12,),
                       hidden_sizes=(4,), mlp_ratios=(2,)),
}  # fmt: skip


# Known to be missed: of how many groups some occurrences could move alone, and why `infer` ties them.
TIED = {
    "efficientvit": (1, "two scales are concatenated along the heads, and reshaped: both get the same channels"),
    "fastvit": (1, "depthwise convolutions double the channels twice: a wreath product within a wreath product"),
    "coat": (3, "the last block's convolutions reach only tokens that are dropped, but tie queries to values"),
    "crossvit": (2, "the class token is concatenated with tokens that are dropped"),
}

# Groups that are the same in all blocks of another one because a weight has the two on two axes, such as that of a
# grouped convolution, (groups × outputs, inputs of a group): no term of one axis can say what depends on another.
BLOCKWISE = {
    **{"resnext": 2, "nfnet": 4, "nf_regnet": 2, "cspresnext": 3, "test_nfnet": 6, "haloregnetz": 1, "bat resnext": 2},
    **{"repvgg, grouped": 3, "resnest": 2, "skresnext": 2, "res2next": 6, "dpn": 4, "visformer": 1, "cpubone": 4},
    **{"regnetx": 5, "regnety": 5, "regnetv": 5, "regnetz": 5},
    "eva, trained rope": 1,  # frequencies (heads, pairs)
}
