// Requantization in several cycles, with no multiplier: clip((x * multiplier[c] + offset[c]) >> SHIFT), D bits of the multiplier
// a cycle, the lowest first. The sum moves down by D bits every cycle, and what falls out lies below the final shift:
// STEPS * D <= SHIFT. The multipliers are not negative. An element takes max(2, STEPS) cycles, STEPS = M / D rounded up
// (SHARED: max(1, STEPS)).
// Constants: two words a channel from a ROM, multiplier and offset; or one pair for all (SHARED).
module dp_scale_serial #(
  parameter int CF = 1,              // channels
  parameter int IB = 16,             // bits of an input element
  parameter bit I_SIGNED = 1,
  parameter int M = 16, B = 32, SHIFT = 24, D = 1,
  parameter int OB = 8,              // bits of a result
  parameter longint LOW = 0, HIGH = 255,
  parameter bit SHARED = 0,
  parameter logic [M+B-1:0] CONSTANT = '0, // offset above, multiplier below
  parameter FILE = "constants.mem",
  parameter STYLE = "auto",
  parameter PLANES = 64'h0
) (
  input  logic clk, rst,
  input  logic [IB-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [OB-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int STEPS = (M + D - 1) / D, LEFT = SHIFT - STEPS * D;
  localparam int TW = STEPS > 1 ? $clog2(STEPS) : 1;
  localparam int AW = (B > IB + 1 + D ? B : IB + 1 + D) + 1;   // bits of the sum
  localparam int FW = AW - D - LEFT > OB + 2 ? AW - D - LEFT : OB + 2;

  logic busy;
  logic [TW-1:0] step;
  wire last = step == TW'(STEPS-1);
  wire run = busy && (!last || !m_valid || m_ready);
  wire free = !busy || (run && last);
  wire known;                        // this channel's constants are there
  wire [M-1:0] multiplier;
  wire signed [B-1:0] offset;
  assign s_ready = free && known;
  wire load = s_valid && s_ready;

  if (SHARED) begin : g_shared
    assign known = 1'b1;
    assign {offset, multiplier} = CONSTANT;
  end else begin : g_rom
    localparam int W = M > B ? M : B, RW = $clog2(2 * CF);
    logic [RW-1:0] at;               // the word read next
    logic [1:0] have;                // words of this channel that have come
    logic [W-1:0] q;
    logic [M-1:0] first;
    wire fetch = have != 2 || load;
    dp_rom #(.DEPTH(2*CF), .WIDTH(W), .FILE(FILE), .STYLE(STYLE), .PLANES(PLANES)) constants (.clk, .en(fetch), .at, .q);
    assign known = have == 2;
    assign multiplier = first;
    assign offset = q[B-1:0];
    always_ff @(posedge clk) begin
      if (fetch) first <= q[M-1:0];
      if (rst) begin
        at <= '0; have <= '0;
      end else begin
        if (fetch) at <= at == RW'(2*CF-1) ? '0 : at + 1'b1;
        if (load) have <= 2'd1;
        else if (have != 2) have <= have + 1'b1;
      end
    end
  end

  wire signed [IB:0] wide = {I_SIGNED && s_data[IB-1], s_data};
  logic signed [IB:0] x;
  logic [M-1:0] m;
  logic signed [AW-1:0] acc;
  logic signed [AW-1:0] sum [D+1];
  assign sum[0] = acc;
  for (genvar k = 0; k < D; k++) begin : g_digit
    if (k < M) assign sum[k+1] = sum[k] + (m[k] ? AW'(x) <<< k : '0);
    else assign sum[k+1] = sum[k];
  end
  wire signed [FW-1:0] result = FW'(sum[D] >>> (D + LEFT));
  logic signed [FW-1:0] done;
  assign m_data = done < FW'(LOW) ? OB'(LOW) : done > FW'(HIGH) ? OB'(HIGH) : done[OB-1:0];
  always_ff @(posedge clk) begin
    if (load) begin
      x <= wide; m <= multiplier; acc <= AW'(offset);
    end else if (run) begin
      m <= m >> D; acc <= sum[D] >>> D;
    end
    if (run && last) done <= result;
    if (rst) begin
      busy <= 1'b0; step <= '0; m_valid <= 1'b0;
    end else begin
      if (load) busy <= 1'b1; else if (run && last) busy <= 1'b0;
      if (run) step <= last ? '0 : step + 1'b1;
      if (run && last) m_valid <= 1'b1; else if (m_ready) m_valid <= 1'b0;
    end
  end
endmodule
