// First-word-fall-through FIFO. DEPTH words in a memory that is read synchronously (block or distributed RAM), and one
// word in the output register. `count` is the number of words held, for sizing by simulation.
module dp_fifo #(
  parameter int WIDTH = 8,
  parameter int DEPTH = 16
) (
  input  logic clk, rst,
  input  logic [WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int AW = DEPTH > 1 ? $clog2(DEPTH) : 1;
  (* no_rw_check *) logic [WIDTH-1:0] mem [DEPTH];
  logic [AW-1:0] wp, rp;
  logic [$clog2(DEPTH+1)-1:0] held;
  wire push = s_valid && s_ready;
  wire pull = held != 0 && (!m_valid || m_ready);
  assign s_ready = held != DEPTH[$clog2(DEPTH+1)-1:0];
  always_ff @(posedge clk) begin
    if (push) mem[wp] <= s_data;
    if (pull) m_data <= mem[rp];
    if (rst) begin
      wp <= '0; rp <= '0; held <= '0; m_valid <= 1'b0;
    end else begin
      if (push) wp <= wp == AW'(DEPTH-1) ? '0 : wp + 1'b1;
      if (pull) rp <= rp == AW'(DEPTH-1) ? '0 : rp + 1'b1;
      if (push != pull) held <= push ? held + 1'b1 : held - 1'b1;
      if (pull) m_valid <= 1'b1;
      else if (m_ready) m_valid <= 1'b0;
    end
  end
`ifdef DP_PROFILE
  int most = 0;
  always_ff @(posedge clk) if (!rst && int'(held) > most) most <= int'(held);
  final $display("FIFO %m %0d", most);
`endif
`ifndef SYNTHESIS
  logic waiting = 0;
  logic [WIDTH-1:0] offered;
  always_ff @(posedge clk) begin
    if (waiting && !rst) assert (s_valid && s_data === offered) else $error("%m: a beat changed before it was taken");
    waiting <= s_valid && !s_ready && !rst;
    offered <= s_data;
  end
`endif
endmodule
