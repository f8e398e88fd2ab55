# The guest that proves an accelerator: a PVH kernel of a few hundred instructions that does what
# every stock kernel does before its first line of output, and no more. It ends QEMU through
# isa-debug-exit: with 0x2a when all went well, else with the number of the step that failed.
#
# Entered in 32-bit protected mode without paging (Xen's docs/misc/pvh.pandoc).
#
# Assembled with:  as --64 -o guest.o guest.S && ld -n -s -Ttext=0x100000 -o guest.elf guest.o
# (a test compares the two when binutils are there)

        .set EXIT_PORT, 0xf4
        .set PROVED, 0x2a

        .section .note.pvh, "a", @note
        .balign 4
        .long 4, 4, 18                  # name size, value size, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long start

        .macro step number
        movb $\number, %bl              # the step under way, for whoever ends the machine
        .endm

        .text
        .code32
        .globl _start
_start:
start:
        cld
        movl $stack_top, %esp
        step 1                          # page tables: the first 4 GiB but the second, identical
        xorl %eax, %eax
        movl $tables, %edi
        movl $(tables_end - tables) / 4, %ecx
        rep stosl
        movl $pdpt + 7, pml4
        movl $pd0 + 7, pdpt
        movl $pd3 + 7, pdpt + 24
        xorl %ecx, %ecx
1:      movl %ecx, %eax
        shll $21, %eax
        leal 0x87(%eax), %edx           # present, writable, user, 2 MiB
        movl %edx, pd0(,%ecx,8)
        leal 0xc0000097(%eax), %edx     # the same, not cached: the APIC is there
        movl %edx, pd3(,%ecx,8)
        incl %ecx
        cmpl $512, %ecx
        jne 1b

        step 2                          # long mode
        movl %cr4, %eax
        orl $0x6a0, %eax                # PAE, PGE, OSFXSR, OSXMMEXCPT
        movl %eax, %cr4
        movl $pml4, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x901, %eax                # SCE, LME, NXE
        wrmsr
        movl %cr0, %eax
        andl $~0x4, %eax                # not EM
        orl $0x80010022, %eax           # PG, WP, NE, MP
        movl %eax, %cr0
        lgdt gdt_pointer
        ljmp $0x08, $long

        .code64
long:
        step 3                          # segments, a far return as kernels do it
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        xorl %eax, %eax
        movl %eax, %fs
        movl %eax, %gs
        movl $stack_top, %esp
        pushq $0x08
        leaq 2f(%rip), %rax
        pushq %rax
        lretq
2:
        step 4                          # interrupt table, task register
        leaq idt(%rip), %rdi
        leaq trap(%rip), %rax
        movl $256, %ecx
3:      movw %ax, (%rdi)
        movw $0x08, 2(%rdi)
        movw $0x8e00, 4(%rdi)
        movl %eax, %edx
        shrl $16, %edx
        movw %dx, 6(%rdi)
        movl $0, 8(%rdi)
        movl $0, 12(%rdi)
        addq $16, %rdi
        decl %ecx
        jnz 3b
        .macro gate vector, handler
        leaq \handler(%rip), %rax
        movw %ax, idt + 16 * \vector
        shrl $16, %eax
        movw %ax, idt + 16 * \vector + 6
        .endm
        gate 3, on_breakpoint
        gate 6, on_undefined
        gate 13, on_protection
        gate 14, on_page_fault
        gate 32, on_timer
        movw $0xee00, idt + 16 * 3 + 4  # int3 from user mode too
        leaq tss(%rip), %rax
        movq $stack_top, 4(%rax)        # rsp0
        movw %ax, gdt_tss + 2
        shrl $16, %eax
        movb %al, gdt_tss + 4
        movb %ah, gdt_tss + 7
        movl $0x30, %eax
        ltr %ax
        lidt idt_pointer(%rip)

        movb $0xff, %al
        outb %al, $0x21                 # the old interrupt controllers are silent
        outb %al, $0xa1

        step 5                          # faults that kernels provoke and recover from
        xorl %ebp, %ebp                 # counts the traps
        int3
        ud2
        movabsq $0x8000000000000000, %rcx
        movq (%rcx), %rax               # no address: a protection fault
        cmpl $3, %ebp
        jne fail

        step 6                          # a page fault whose handler maps the page
        movl $0x40000123, %edi
        movl $0x55aa1234, (%rdi)
        cmpl $0x55aa1234, (%rdi)
        jne fail
        cmpl $4, %ebp
        jne fail
        invlpg (%rdi)
        movq %cr3, %rax
        movq %rax, %cr3
        movq %cr4, %rax                 # flush global pages as kernels do
        movq %rax, %rdx
        xorq $0x80, %rax
        movq %rax, %cr4
        movq %rdx, %cr4

        step 7                          # CPUID and the registers kernels set at once
        xorl %ebp, %ebp
        .macro leaf number
        movl $\number, %eax
        xorl %ecx, %ecx
        pushq %rbx
        cpuid
        popq %rbx
        .endm
        leaf 0
        leaf 1
        movl %ecx, %r12d                # bit 26: XSAVE
        leaf 7
        leaf 0xd
        leaf 0x40000000
        leaf 0x80000000
        leaf 0x80000001
        leaf 0x80000008
        rdtsc
        .macro read_register number
        movl $\number, %ecx
        rdmsr
        .endm
        read_register 0x1b              # APIC base
        read_register 0x10              # time stamp counter
        read_register 0xfe              # memory types
        read_register 0x277             # PAT
        movl $0x00070406, %eax          # as Linux sets it
        movl $0x00070106, %edx
        movl $0x277, %ecx
        wrmsr
        xorl %eax, %eax
        xorl %edx, %edx
        movl $0xc0000100, %ecx          # FS base
        wrmsr
        movl $0xc0000101, %ecx          # GS base
        wrmsr
        movl $tables, %eax
        movl $0xc0000102, %ecx          # kernel GS base
        wrmsr
        swapgs
        swapgs
        movl $0x00180008, %edx          # STAR: kernel 0x08, 0x10; user 0x18 + 16, + 8
        xorl %eax, %eax
        movl $0xc0000081, %ecx
        wrmsr
        leaq on_system_call(%rip), %rax
        xorl %edx, %edx
        movl $0xc0000082, %ecx          # LSTAR
        wrmsr
        movl $0x47700, %eax
        movl $0xc0000084, %ecx          # flags masked by a system call
        wrmsr
        cmpl $0, %ebp
        jne fail

        step 8                          # floating point and vectors
        fninit
        fwait
        movl $0x1f80, -8(%rsp)
        ldmxcsr -8(%rsp)
        movd %esp, %xmm0
        pshufd $0, %xmm0, %xmm1
        movaps %xmm1, area(%rip)
        fxsave64 area(%rip)
        fxrstor64 area(%rip)
        btl $26, %r12d
        jnc 4f
        movq %cr4, %rax
        orq $0x40000, %rax              # OSXSAVE
        movq %rax, %cr4
        xorl %ecx, %ecx
        xgetbv
        orl $3, %eax
        xsetbv
        movl $3, %eax
        xorl %edx, %edx
        xsave64 area(%rip)
        xrstor64 area(%rip)
4:
        step 9                          # strings and atomic operations
        leaq 0x200000, %rdi
        movl $0x100000 / 8, %ecx
        movabsq $0x0123456789abcdef, %rax
        rep stosq
        movl $0x200000, %esi
        movl $0x300000, %edi
        movl $0x100000, %ecx
        rep movsb
        cmpq %rax, -8(%rdi)
        jne fail
        movl $0x200000, %edi
        lock xaddq %rax, (%rdi)
        movl $1, %ecx
        lock cmpxchgq %rcx, (%rdi)
        xchgq %rcx, (%rdi)

        step 10                         # user mode and a system call
        movl $user, %ecx
        movl $0x202, %r11d
        movq %rsp, %r13
        sysretq
user:
        int3                            # by the task register's stack
        syscall
        ud2
on_system_call:
        movq %r13, %rsp
        cmpl $1, %ebp
        jne fail

        step 11                         # a timer interrupt ends a halt
        xorl %ebp, %ebp
        movl $0xfee00000, %edi
        movl $0x1ff, 0xf0(%rdi)         # APIC on
        movl $0, 0x80(%rdi)
        movl $0xb, 0x3e0(%rdi)          # divide by 1
        movl $32, 0x320(%rdi)           # one shot, vector 32
        movl $1000000, 0x380(%rdi)
5:      sti
        hlt
        cli
        testl %ebp, %ebp
        jz 5b

        movb $PROVED, %bl
fail:
        movb %bl, %al
        outb %al, $EXIT_PORT
6:      cli
        hlt
        jmp 6b

# What must not happen ends the machine with the step under way.
trap:
        jmp fail

on_breakpoint:
        incl %ebp
        iretq

on_undefined:
        incl %ebp
        addq $2, (%rsp)                 # ud2 has two bytes
        iretq

on_protection:
        incl %ebp
        addq $8, %rsp
        addq $3, (%rsp)                 # the load has three bytes
        iretq

on_page_fault:
        incl %ebp
        addq $8, %rsp
        pushq %rax
        movq %cr2, %rax
        cmpl $0x40000123, %eax
        jne fail
        movl $pd1 + 7, pdpt + 8
        movl $0x600087, pd1             # to the memory at 6 MiB
        popq %rax
        iretq

on_timer:
        incl %ebp
        pushq %rax
        movl $0xfee00000, %eax
        movl $0, 0xb0(%rax)
        popq %rax
        iretq

        .balign 8
gdt:
        .quad 0
        .quad 0x00af9b000000ffff        # 0x08 kernel code
        .quad 0x00cf93000000ffff        # 0x10 kernel data
        .quad 0                         # 0x18 where user selectors begin
        .quad 0x00cff3000000ffff        # 0x20 user data
        .quad 0x00affb000000ffff        # 0x28 user code
gdt_tss:
        .quad 0x0000890000000067        # 0x30 task
        .quad 0
        .set gdt_end, .
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt
idt_pointer:
        .word 256 * 16 - 1
        .quad idt

        .bss
        .balign 4096
tables:
pml4:   .skip 4096
pdpt:   .skip 4096
pd0:    .skip 4096
pd1:    .skip 4096
pd3:    .skip 4096
tables_end:
idt:    .skip 4096
        .balign 64
area:   .skip 4096
tss:    .skip 104
        .balign 16
        .skip 8192
stack_top:
