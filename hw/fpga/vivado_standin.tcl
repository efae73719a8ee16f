# A stand-in for the Vivado commands that build.tcl uses: tclsh vivado_standin.tcl build.tcl part=... ps=... in=... out=...
# It keeps a model of the block design and stops with an error at anything that does not fit: a file that is not there, a
# cell, pin or property that the IP does not have, a pin connected twice or not at all, streams of different widths.
set script [lindex $argv 0]
foreach pair [lrange $argv 1 end] { set expect([lindex [split $pair =] 0]) [lindex [split $pair =] 1] }
array set cells {}; array set used {}; array set props {}; set files {}; set done {}
proc fail {text} { puts stderr "build.tcl: $text"; exit 1 }

# interfaces (direction) and pins of every IP; direction m drives, s is driven
array set ip {
  processing_system7 {M_AXI_GP0 m S_AXI_HP0 s DDR x FIXED_IO x}
  zynq_ultra_ps_e {M_AXI_HPM0_FPD m S_AXI_HP0_FPD s}
  axi_gpio {S_AXI s}
  axi_dma {S_AXI_LITE s M_AXI_MM2S m M_AXI_S2MM m M_AXIS_MM2S m S_AXIS_S2MM s}
  smartconnect {}
  proc_sys_reset {}
}
array set pins {
  processing_system7 {FCLK_CLK0 o FCLK_RESET0_N o M_AXI_GP0_ACLK i S_AXI_HP0_ACLK i}
  zynq_ultra_ps_e {pl_clk0 o pl_resetn0 o maxihpm0_fpd_aclk i saxihp0_fpd_aclk i}
  axi_dma {s_axi_lite_aclk i m_axi_mm2s_aclk i m_axi_s2mm_aclk i axi_resetn i}
  smartconnect {aclk i aresetn i}
  proc_sys_reset {slowest_sync_clk i ext_reset_in i peripheral_aresetn o}
  axi_gpio {s_axi_aclk i s_axi_aresetn i gpio_io_o o}
}
# of constants in memory: a second port of the processor
if {$expect(constants)} {
  set ip(processing_system7) [concat $ip(processing_system7) {S_AXI_HP1 s}]
  set ip(zynq_ultra_ps_e) [concat $ip(zynq_ultra_ps_e) {S_AXI_HP1_FPD s}]
  set pins(processing_system7) [concat $pins(processing_system7) {S_AXI_HP1_ACLK i}]
  set pins(zynq_ultra_ps_e) [concat $pins(zynq_ultra_ps_e) {saxihp1_fpd_aclk i}]
}
array set known {
  processing_system7 {PCW_USE_S_AXI_HP0 PCW_USE_M_AXI_GP0 PCW_FPGA0_PERIPHERAL_FREQMHZ PCW_EN_CLK0_PORT PCW_EN_RST0_PORT PCW_USE_S_AXI_HP1}
  zynq_ultra_ps_e {PSU__USE__M_AXI_GP0 PSU__USE__M_AXI_GP1 PSU__USE__M_AXI_GP2 PSU__USE__S_AXI_GP2 PSU__SAXIGP2__DATA_WIDTH PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ PSU__FPGA_PL0_ENABLE PSU__USE__S_AXI_GP3 PSU__SAXIGP3__DATA_WIDTH}
  axi_dma {c_include_sg c_sg_length_width c_m_axi_mm2s_data_width c_m_axis_mm2s_tdata_width c_m_axi_s2mm_data_width c_mm2s_burst_size c_s2mm_burst_size}
  smartconnect {NUM_SI NUM_MI}
  proc_sys_reset {}
  axi_gpio {C_GPIO_WIDTH C_ALL_OUTPUTS}
}
proc create_project {args} {
  global expect done
  if {[lindex $args end] ne $expect(part)} { fail "part [lindex $args end] where the board has $expect(part)" }
  lappend done project
}
proc add_files {args} {
  global files
  set f [lindex $args end]
  if {![file isfile $f]} { fail "$f does not exist" }
  lappend files [file normalize $f]
}
proc get_files {f} {
  global files
  if {$f ne "system.bd" && [lsearch $files [file normalize $f]] < 0} { fail "$f was not added" }
  return $f
}
proc create_bd_design {name} { global done; lappend done design }
proc create_bd_cell {args} {
  global cells ip files ports expect
  set name [lindex $args end]
  if {[info exists cells($name)]} { fail "cell $name is there already" }
  if {[lindex $args 1] eq "ip"} {
    set kind [lindex [split [lindex $args 3] :] 2]
    if {![info exists ip($kind)]} { fail "no IP $kind" }
    if {$name eq "ps" && $kind ne $expect(ps)} { fail "processor $kind where the board has $expect(ps)" }
    set cells($name) $kind
  } else {
    set module [lindex $args 3]
    set text ""
    foreach f $files { if {[file tail $f] eq "$module.v"} { set h [open $f]; set text [read $h]; close $h } }
    if {![regexp "module $module " $text]} { fail "module $module is in no Verilog file (.v) of the project" }
    foreach {all dir range n} [regexp -all -inline {(input|output)\s+wire\s+(?:\[(\d+):0\]\s*)?(\w+)} $text] {
      set ports($n) [expr {$range eq "" ? 1 : $range + 1}]
    }
    set more {}
    if {$expect(constants)} { set more [list image 32 m_axi_araddr 40 m_axi_rdata $expect(constants) m_axi_arlen 8 m_axi_arsize 3 m_axi_rlast 1 m_axi_rready 1] }
    foreach {port width} [concat $more [list s_axis_tdata $expect(in) m_axis_tdata $expect(out) s_axis_tlast 1 m_axis_tlast 1 m_axis_tkeep [expr {$expect(out)/8}] aclk 1 aresetn 1]] {
      if {![info exists ports($port)] || $ports($port) != $width} { fail "port $port of $module is not $width wide" }
    }
    set cells($name) module
  }
}
proc get_bd_cells {name} { global cells; if {![info exists cells($name)]} { fail "no cell $name" }; return $name }
proc set_property {args} {
  global cells known props expect
  if {[lindex $args 0] ne "-dict"} return
  set cell [lindex $args 2]
  foreach {k v} [lindex $args 1] {
    set k [string range $k 7 end]
    if {[lsearch $known($cells($cell)) $k] < 0} { fail "$cells($cell) has no property $k" }
    set props($cell,$k) $v
  }
  if {$cells($cell) eq "axi_dma"} {
    if {$props($cell,c_m_axis_mm2s_tdata_width) != $expect(in)} { fail "DMA stream in is not $expect(in) wide" }
    if {$props($cell,c_m_axi_mm2s_data_width) < $expect(in)} { fail "DMA memory port is narrower than its stream" }
    if {$props($cell,c_m_axi_s2mm_data_width) < $expect(out)} { fail "DMA memory port is narrower than its stream" }
  }
}
proc pin_list {cell} {
  global cells pins ip props expect
  if {$cells($cell) eq "module"} { return [expr {$expect(constants) ? {aclk i aresetn i image i} : {aclk i aresetn i}}] }
  return $pins($cells($cell))
}
proc intf_list {cell} {
  global cells ip props expect
  if {$cells($cell) eq "module"} { return [expr {$expect(constants) ? {s_axis s m_axis m m_axi m} : {s_axis s m_axis m}}] }
  if {$cells($cell) eq "smartconnect"} {
    set l {}
    for {set i 0} {$i < $props($cell,NUM_SI)} {incr i} { lappend l [format S%02d_AXI $i] s }
    for {set i 0} {$i < $props($cell,NUM_MI)} {incr i} { lappend l [format M%02d_AXI $i] m }
    return $l
  }
  return $ip($cells($cell))
}
proc find {what path list} {
  set cell [lindex [split $path /] 0]; set pin [lindex [split $path /] 1]
  get_bd_cells $cell
  array set a [$list $cell]
  if {![info exists a($pin)]} { fail "$what $path does not exist" }
  return [list $path $a($pin)]
}
proc get_bd_pins {path} { return [find pin $path pin_list] }
proc get_bd_intf_pins {path} { return [find interface $path intf_list] }
proc connect_bd_intf_net {a b} {
  global used
  if {[lindex $a 1] ne "m" || [lindex $b 1] ne "s"} { fail "[lindex $a 0] to [lindex $b 0] is not master to slave" }
  foreach p [list [lindex $a 0] [lindex $b 0]] {
    if {[info exists used($p)]} { fail "$p is connected twice" }
    set used($p) 1
  }
}
proc connect_bd_net {a b} {
  global used
  if {[lindex $a 1] ne "o" || [lindex $b 1] ne "i"} { fail "[lindex $a 0] does not drive [lindex $b 0]" }
  if {[info exists used([lindex $b 0])]} { fail "[lindex $b 0] is driven twice" }
  set used([lindex $b 0]) 1; set used([lindex $a 0]) 1
}
proc make_bd_intf_pins_external {args} { global used; foreach p $args { set used([lindex $p 0]) 1 } }
proc assign_bd_address {args} { global done; lappend done addresses }
proc validate_bd_design {args} {
  global cells used done
  foreach cell [array names cells] {
    foreach list {pin_list intf_list} {
      foreach {pin dir} [$list $cell] {
        if {$dir ne "o" && ![info exists used($cell/$pin)]} { fail "$cell/$pin is not connected" }
      }
    }
  }
  if {[lsearch $done addresses] < 0} { fail "no addresses were assigned" }
  lappend done validated
}
proc save_bd_design {args} {}
proc make_wrapper {args} { global done; lappend done wrapper }
proc current_fileset {args} { return sources_1 }
proc update_compile_order {args} {}
proc launch_runs {args} { global done; foreach d {project design validated wrapper} { if {[lsearch $done $d] < 0} { fail "$d is missing before the run" } }; lappend done run }
proc wait_on_run {args} {}
proc get_runs {args} { return run }
proc get_timing_paths {args} { return path }
proc get_property {name args} { return [expr {$name eq "SLACK" ? 1.0 : "100%"}] }
proc open_run {args} {}
proc report_utilization {args} {}
proc report_timing_summary {args} {}
rename file real_file
proc file {sub args} {
  if {$sub eq "copy"} { global done; lappend done copied; return }
  return [uplevel 1 [list real_file $sub {*}$args]]
}
proc glob {args} { return $args }
rename info real_info
proc info {sub args} {
  global script
  if {$sub eq "script"} { return $script }
  return [uplevel 1 [list real_info $sub {*}$args]]
}
source $script
if {[llength [lsearch -all $done copied]] != 2} { fail "it does not copy the .bit and the .hwh" }
puts "ok: [llength $files] files, [array size cells] cells, [array size used] connections"
