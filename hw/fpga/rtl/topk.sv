// Label select: the channels of the K largest of CF * PE values, largest first; of equal values the lower channel. A beat
// brings PE channels, which are inserted one after the other into the K best so far; the last beat of a pixel sends them out.
module dp_topk #(
  parameter int PE = 1, CF = 10, K = 1,
  parameter int IB = 16,
  parameter bit SIGNED = 1,
  parameter int OB = 4               // bits of a channel number
) (
  input  logic clk, rst,
  input  logic [PE*IB-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [K*OB-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int FW = CF > 1 ? $clog2(CF) : 1;
  logic [FW-1:0] at;
  wire last = at == FW'(CF-1);
  assign s_ready = !last || !m_valid || m_ready;
  wire go = s_valid && s_ready;

  logic [K-1:0] held;                // places taken so far
  logic signed [K-1:0][IB:0] value;
  logic [K-1:0][OB-1:0] channel;
  // the list after 0, 1, ... PE insertions
  logic [PE:0][K-1:0] held_n;
  logic signed [PE:0][K-1:0][IB:0] value_n;
  logic [PE:0][K-1:0][OB-1:0] channel_n;
  assign held_n[0] = at == '0 ? '0 : held;
  assign value_n[0] = value;
  assign channel_n[0] = channel;
  for (genvar p = 0; p < PE; p++) begin : g_insert
    wire signed [IB:0] x = {SIGNED && s_data[p*IB+IB-1], s_data[p*IB +: IB]};
    wire [OB-1:0] c = OB'(at * PE + p);
    wire [K-1:0] above;              // x comes in front of place k
    for (genvar k = 0; k < K; k++) begin : g_place
      assign above[k] = !held_n[p][k] || x > $signed(value_n[p][k]);
      if (k == 0) begin : g_first
        assign value_n[p+1][k] = above[k] ? x : value_n[p][k];
        assign channel_n[p+1][k] = above[k] ? c : channel_n[p][k];
        assign held_n[p+1][k] = 1'b1;
      end else begin : g_other
        assign value_n[p+1][k] = !above[k] ? value_n[p][k] : above[k-1] ? value_n[p][k-1] : x;
        assign channel_n[p+1][k] = !above[k] ? channel_n[p][k] : above[k-1] ? channel_n[p][k-1] : c;
        assign held_n[p+1][k] = held_n[p][k] || held_n[p][k-1];
      end
    end
  end

  always_ff @(posedge clk) begin
    if (go) begin
      held <= held_n[PE]; value <= value_n[PE]; channel <= channel_n[PE];
      if (last) m_data <= channel_n[PE];
    end
    if (rst) begin
      at <= '0; m_valid <= 1'b0;
    end else begin
      if (go) at <= last ? '0 : at + 1'b1;
      if (go && last) m_valid <= 1'b1;
      else if (m_ready) m_valid <= 1'b0;
    end
  end
endmodule
