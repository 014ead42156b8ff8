"""The lab: emulated machines in which /dev/kvm is hardware virtualization. See docs/lab.md."""
