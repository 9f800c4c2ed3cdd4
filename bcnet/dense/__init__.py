"""DenseNAS: how many blocks, how wide, and where they shrink (Fang et al., CVPR 2020, "Densely Connected Search Space")."""
